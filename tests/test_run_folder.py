"""A run folder: what is lost or changed in it is noticed and made again, one command at a time
works there, nothing outlives it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dialdown.cli import main as cli
from dialdown.errors import DialdownError
from dialdown.evaluation.evaluator import Measured
from dialdown.files import (
    read_arrays,
    read_sealed,
    write_arrays,
    write_json,
    write_sealed,
    write_text,
)
from dialdown.interventions.intervention import untouched
from dialdown.report.stage import report_again
from dialdown.study.config import Config
from dialdown.study.context import Workspace
from dialdown.study.folder import file_states
from dialdown.study.holding import held
from dialdown.study.plan import Planned
from dialdown.study.rows import RowFiles
from dialdown.study.run import Study
from dialdown.training.make_pairs import CandidateFiles, Candidates
from dialdown.training.settings import PairSettings


@dataclass
class Made:
    """A study of three stages without a model: it counts what it does, and may find another
    direction.
    """

    folder: Path
    done: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    found: float = 1.0
    meanwhile: Callable[[], None] = lambda: None

    def run(self) -> list[str]:
        """Run it, and give the stages that were done."""
        self.done.clear()
        self.said.clear()
        stages = {"probe": self.probe, "pairs": self.pairs, "train": self.train}
        Study(Config(), self.folder, announce=self.said.append, stages=stages).run()
        return [*self.done]

    def probe(self, work: Workspace) -> dict[str, Any]:
        self.done.append("probe")
        self.meanwhile()
        write_arrays(
            self.folder / "direction-probe.safetensors",
            "direction",
            {"vector": np.full(3, self.found)},
            {},
        )
        return {"auc": 0.9}

    def pairs(self, work: Workspace) -> dict[str, Any]:
        self.done.append("pairs")
        for start in range(2):
            write_sealed(self.folder / "pairs" / f"{start}.json", {"prompts": ["a"]})
        write_text(self.folder / "pairs.jsonl", f"{self.found}\n")
        return {}

    def train(self, work: Workspace) -> dict[str, Any]:
        self.done.append("train")
        # As a training that finds its finished folder does.
        if not (self.folder / "tuned" / "training.json").exists():
            write_text(self.folder / "tuned" / "model.safetensors", f"{self.found} weights")
            write_json(self.folder / "tuned" / "training.json", {"seconds": time.perf_counter()})
        return {}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    study = Made(tmp_path / "run")
    assert study.run() == ["probe", "pairs", "train"]
    return study


def flip(path: Path, place: int = -2) -> None:
    """Change a bit as a disk would, which leaves size and time alone."""
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def replace_by_folder(path: Path) -> None:
    path.unlink()
    (path / "inner").mkdir(parents=True)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.suffix != ".lock"
    }


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink, replace_by_folder])
@pytest.mark.parametrize(
    ("place", "again"),
    [
        ("direction-probe.safetensors", "probe"),
        ("pairs.jsonl", "pairs"),
        ("pairs/1.json", "pairs"),
        ("tuned/model.safetensors", "train"),
        ("tuned/training.json", "train"),
    ],
)
def test_a_stage_is_not_done_while_a_file_of_it_is_gone_or_changed(
    made: Made, place: str, again: str, harm: Callable[[Path], None]
) -> None:
    whole = (made.folder / place).read_bytes()
    harm(made.folder / place)
    assert made.run() == [again]
    assert any(place in sentence and "made again" in sentence for sentence in made.said)
    # What is read of the file is as before, so nothing that reads it is done again.
    assert (made.folder / place).read_bytes() == whole or place.endswith("training.json")
    assert made.run() == []


def test_what_reads_a_file_that_came_out_differently_is_done_again_too(made: Made) -> None:
    made.found = 2.0
    flip(made.folder / "direction-probe.safetensors")
    assert made.run() == ["probe", "pairs", "train"]


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"null", b"\xff\xfe", b"[1]", b'{"config": {}, "stages": {}}']
)
def test_a_lost_or_damaged_run_json_loses_no_work(made: Made, content: bytes | None) -> None:
    path = made.folder / "run.json"
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert made.run() == []
    assert path.read_bytes() == whole
    assert any("run.json was damaged" in sentence for sentence in made.said) == (
        content is not None
    )


@pytest.mark.parametrize("content", [b"", b"null", b"\xff\xfe", b'{"inputs": "x"}'])
def test_a_damaged_record_of_a_stage_costs_that_stage_only(made: Made, content: bytes) -> None:
    (made.folder / "stages" / "pairs.json").write_bytes(content)
    assert made.run() == ["pairs"]
    assert any("stages/pairs.json" in sentence for sentence in made.said)


@pytest.mark.parametrize("place", ["tuned/model.safetensors", "tuned/training.json"])
def test_a_file_is_not_trusted_where_the_record_that_vouches_for_it_is_damaged_too(
    made: Made, place: str
) -> None:
    whole = (made.folder / place).read_bytes()
    flip(made.folder / place, 1)
    flip(made.folder / "stages" / "train.json")
    assert made.run() == ["train"]
    assert (made.folder / place).read_bytes() == whole or place.endswith("training.json")
    assert any("stages/train.json" in sentence for sentence in made.said)
    assert made.run() == []


def test_other_settings_are_refused_also_where_run_json_is_lost(made: Made) -> None:
    (made.folder / "run.json").unlink()
    study = Study(
        Config(seed=3),
        made.folder,
        stages={"probe": made.probe, "pairs": made.pairs, "train": made.train},
    )
    with pytest.raises(DialdownError, match="seed: 0 -> 3"):
        study.run()


def test_only_the_files_of_a_named_folder_are_what_a_setting_stands_for(tmp_path: Path) -> None:
    """A run or an export beside a model's files, or a link that leads nowhere, is no other model; a
    concept is no file.
    """
    model = tmp_path / "model"
    write_text(model / "config.json", "{}")
    settings = {"model": str(model), "concept": 300 * "a", "nested": {"text": "#1"}}
    before = file_states(settings)
    assert [Path(file).name for file, _, _ in before] == ["config.json"]
    write_text(model / "runs" / "demo" / "run.json", "{}")
    (model / "link").symlink_to(tmp_path / "nowhere")
    assert file_states(settings) == before
    write_text(model / "config.json", "{ }")
    assert file_states(settings) != before


def test_a_moved_folder_has_lost_nothing(made: Made, tmp_path: Path) -> None:
    made.folder = Path(shutil.move(made.folder, tmp_path / "moved"))
    assert made.run() == []


def test_no_flipped_bit_of_a_sealed_file_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_sealed(path, {"effect": "é", "values": [0.5, None]})
    assert (
        read_sealed(path)
        == {"effect": "é", "values": [0.5, None]}
        == {
            key: value
            for key, value in json.loads(path.read_text(encoding="utf-8")).items()
            if key != "sha256"
        }
    )
    whole = path.read_bytes()
    for place in range(len(whole)):
        flip(path, place)
        assert read_sealed(path) is None
        path.write_bytes(whole)


def test_no_flipped_bit_of_saved_arrays_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_arrays(
        path, "thing", {"means": np.arange(3.0), "mask": np.array([True])}, {"auc": 0.5, "id": "x"}
    )
    whole = path.read_bytes()
    for place in range(len(whole)):
        flip(path, place)
        with pytest.raises(DialdownError):
            read_arrays(path, "thing")
        path.write_bytes(whole)


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"{"])
def test_damaged_rows_and_candidates_are_measured_again(tmp_path: Path, content: bytes) -> None:
    rows, row = RowFiles(tmp_path / "rows", "x"), Planned(untouched(), "strict", 1)
    batches = CandidateFiles(tmp_path / "pairs", "x", PairSettings())
    measured = Measured({"toxicity/a": [0.5]}, [1], ["b"], ["a"], 0)
    rows.write(row, measured)
    batches.write(0, Candidates(["a"], [["b"]], [[0.5]]))
    assert rows.read(row) == measured
    assert batches.read(0) == Candidates(["a"], [["b"]], [[0.5]])
    for path in (tmp_path / "rows" / "strict-none.json", tmp_path / "pairs" / "000000.json"):
        path.write_bytes(content)
    assert rows.read(row) is None
    assert batches.read(0) is None


def test_a_second_command_is_told_who_is_at_work(tmp_path: Path) -> None:
    study = Made(tmp_path / "run")
    refusals: list[str] = []

    def second() -> None:
        for command in (Made(study.folder).run, lambda: report_again(study.folder)):
            with pytest.raises(DialdownError) as refused:
                command()
            refusals.append(str(refused.value))

    study.run()
    study.meanwhile = second
    flip(study.folder / "direction-probe.safetensors")
    assert study.run() == ["probe"]
    assert len(refusals) == 2
    assert all(
        f"in use by process {os.getpid()} on {os.uname().nodename} since 2" in said
        for said in refusals
    )


HOLDER = """
import sys, time
from pathlib import Path
from dialdown.study.holding import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_command_holds_nothing(made: Made) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(made.folder)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(DialdownError, match=f"in use by process {process.pid} "):
            made.run()
        process.kill()
    assert made.run() == []


@pytest.mark.parametrize(
    "left",
    [[".dialdown.lock", ".dialdown.json"], [".run.json.7.partial"], [".dialdown.lock", "run.json"]],
)
def test_a_folder_whose_first_command_was_killed_at_once_is_no_strangers(
    tmp_path: Path, left: list[str]
) -> None:
    study = Made(tmp_path / "run")
    study.folder.mkdir()
    for name in left:
        (study.folder / name).touch()
    assert study.run() == ["probe", "pairs", "train"]


def test_what_a_killed_command_left_half_written_is_removed(made: Made) -> None:
    (made.folder / "rows" / ".tuned.partial").mkdir(parents=True)
    (made.folder / "rows" / ".a.json.7.partial").write_text("half")
    (made.folder / ".run.json.7.partial").write_text("half")
    before = {*files_of(made.folder)}
    made.run()
    assert before - {*files_of(made.folder)} == {".run.json.7.partial", "rows/.a.json.7.partial"}
    assert not (made.folder / "rows" / ".tuned.partial").exists()


@pytest.mark.parametrize("error", [DialdownError("no such model"), KeyboardInterrupt()])
def test_a_run_that_did_nothing_leaves_no_folder(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        raise error

    study = Made(tmp_path / "run", meanwhile=fail)
    with pytest.raises(type(error)):
        study.run()
    assert not study.folder.exists()
    study.folder.mkdir()
    with pytest.raises(type(error)):
        study.run()
    assert study.folder.exists()


@pytest.mark.parametrize("name", ["notes.txt", "run.json", "stages"])
def test_a_strangers_folder_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).write_text("{}")
    with pytest.raises(DialdownError, match="holds no study"):
        Made(folder).run()
    assert files_of(folder) == {name: b"{}"}


def test_a_report_is_not_made_of_damaged_files(made: Made) -> None:
    flip(made.folder / "pairs.jsonl")
    with pytest.raises(
        DialdownError, match=r"pairs\.jsonl is gone or was damaged .* repeat the command"
    ):
        report_again(made.folder)


def test_being_asked_to_end_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, cli.interruptible():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    assert "the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


PIECES = """
import os, sys, time
from functools import partial
from pathlib import Path
from dialdown.workers import do_all

def work(folder, piece):
    (folder / str(os.getpid())).touch()
    time.sleep(600)

def prepare(folder):
    return partial(work, folder)

GUARD
    for _ in do_all(partial(prepare, Path(sys.argv[1])), [1, 2], 2):
        pass
"""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PIECES.replace("GUARD", 'if __name__ == "__main__":'))
    (tmp_path / "pids").mkdir()
    parent = subprocess.Popen([sys.executable, script, tmp_path / "pids"])
    until = time.monotonic() + 240
    while len(workers := [int(path.name) for path in (tmp_path / "pids").iterdir()]) < 2:
        assert time.monotonic() < until
        assert parent.poll() is None
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 30
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < until, "a worker outlives its parent"
        time.sleep(0.1)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # A process that nobody waits for is dead all the same.
    status = Path(f"/proc/{process}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PIECES.replace("GUARD", "if True:"))
    done = subprocess.run(
        [sys.executable, script, tmp_path], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 1
    assert 'outside `if __name__ == "__main__":`' in done.stderr
    assert "memory" not in done.stderr
    # Its own words and no worker's.
    assert done.stderr.count("Traceback") <= 2


def test_a_folder_is_held_by_one_at_a_time_and_then_free(tmp_path: Path) -> None:
    with held(tmp_path):
        with pytest.raises(DialdownError, match="in use"), held(tmp_path):
            pass
        # Who was refused took nothing from who holds it.
        with pytest.raises(DialdownError, match=f"process {os.getpid()}"), held(tmp_path):
            pass
    with held(tmp_path):
        pass
