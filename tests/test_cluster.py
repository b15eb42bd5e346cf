"""Pieces done by the workers of a Dask cluster, two processes of this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from dialdown import DialdownError
from dialdown.cluster import do_all
from helpers import pieces
from helpers.commands import run_until

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address=None,
        local_directory=str(tmp_path_factory.mktemp("dask")),
        env={"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
    ) as cluster:
        yield f"dask:{cluster.scheduler_address}"


def test_a_lost_worker_costs_one_piece_which_is_done_again(scheduler: str, tmp_path: Path) -> None:
    done = do_all(partial(pieces.prepare, tmp_path, deadly=1), range(6), scheduler, tmp_path)
    assert sorted(finished.piece for finished in done) == [*range(6)]
    assert [*tmp_path.glob("lost-*")]


def test_a_worker_reads_what_changed_before_the_same_work_was_asked_for_again(
    scheduler: str, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    for text in ("before", "after"):
        file.write_text(text)
        done = do_all(partial(pieces.reader, file), range(6), scheduler, tmp_path)
        assert {finished.told for finished in done} == {text}


def test_rows_of_a_cluster_are_those_of_one_process(
    scheduler: str, study_file: Path, tmp_path: Path
) -> None:
    rows = {}
    for workers in ("1", scheduler):
        folder = tmp_path / workers.partition(":")[0]
        few = ("--set", "protocols=strict", "--set", f"workers={workers}")
        ran = run_until("base", study_file, "--out", folder, *few)
        assert ran.exit_code == 0, ran.output
        rows[workers] = {
            path.name: json.loads(path.read_text()) for path in (folder / "rows").glob("*.json")
        }
    assert rows["1"]
    assert rows["1"] == rows[scheduler]


def test_a_worker_that_does_not_see_the_folder_is_one_sentence(
    scheduler: str, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(DialdownError, match=f"does not see {gone}: start the study in a folder"):
        [*_] = do_all(partial(pieces.prepare, tmp_path), [1], scheduler, gone)


@pytest.mark.parametrize(
    ("workers", "sentence"),
    [
        ("dask:tcp://127.0.0.1:9", "No Dask scheduler answers at tcp://127.0.0.1:9"),
        ("dask:scheduler.json", "names neither an address such as tcp://head:8786 nor the file"),
        ("ray:head", "workers = 'ray:head' is not valid: pass a number of processes"),
        ("0", "workers = '0' is not valid: pass a number of processes"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_sentence(
    workers: str, sentence: str, study_file: Path, tmp_path: Path
) -> None:
    ran = run_until("base", study_file, "--out", tmp_path / "out", "--set", f"workers={workers}")
    assert isinstance(ran.exception, DialdownError)
    assert sentence in str(ran.exception)
    assert not (tmp_path / "out" / "rows").exists()
