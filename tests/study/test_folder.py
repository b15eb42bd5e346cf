"""A run folder: what is lost or changed in it is noticed and made again, and
nothing outlives its run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dialdown import DialdownError
from dialdown.evaluation.row import Measured
from dialdown.files import read_sealed, write_text
from dialdown.interventions import untouched
from dialdown.report.stage import report_again
from dialdown.study import Config, Study
from dialdown.study.plan import Planned
from dialdown.study.rows import RowFiles
from dialdown.study.sources import file_states
from dialdown.training import PairSettings
from dialdown.training.make_pairs import CandidateFiles, Candidates
from helpers.stub_study import StubStudy, flip


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
    study: StubStudy, place: str, again: str, harm: Callable[[Path], None]
) -> None:
    whole = (study.folder / place).read_bytes()
    harm(study.folder / place)
    assert study.run() == [again]
    assert any(place in sentence and "made again" in sentence for sentence in study.said)
    # What is read of the file is as before, so nothing that reads it is done again.
    assert (study.folder / place).read_bytes() == whole or place.endswith("training.json")
    assert study.run() == []


def test_stages_that_read_a_file_that_came_out_differently_are_done_again(study: StubStudy) -> None:
    study.direction = 2.0
    flip(study.folder / "direction-probe.safetensors")
    assert study.run() == ["probe", "pairs", "train"]


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"null", b"\xff\xfe", b"[1]", b'{"config": {}, "stages": {}}']
)
def test_a_lost_or_damaged_run_json_loses_no_work(study: StubStudy, content: bytes | None) -> None:
    path = study.folder / "run.json"
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert study.run() == []
    assert path.read_bytes() == whole
    assert any("run.json was damaged" in sentence for sentence in study.said) == (
        content is not None
    )


@pytest.mark.parametrize("content", [b"", b"null", b"\xff\xfe", b'{"inputs": "x"}'])
def test_a_damaged_record_of_a_stage_costs_that_stage_only(
    study: StubStudy, content: bytes
) -> None:
    (study.folder / "stages" / "pairs.json").write_bytes(content)
    assert study.run() == ["pairs"]
    assert any("stages/pairs.json" in sentence for sentence in study.said)


@pytest.mark.parametrize("place", ["tuned/model.safetensors", "tuned/training.json"])
def test_a_file_is_not_trusted_where_the_record_that_vouches_for_it_is_damaged_too(
    study: StubStudy, place: str
) -> None:
    whole = (study.folder / place).read_bytes()
    flip(study.folder / place, 1)
    flip(study.folder / "stages" / "train.json")
    assert study.run() == ["train"]
    assert (study.folder / place).read_bytes() == whole or place.endswith("training.json")
    assert any("stages/train.json" in sentence for sentence in study.said)
    assert study.run() == []


def test_other_settings_are_refused_also_where_run_json_is_lost(study: StubStudy) -> None:
    (study.folder / "run.json").unlink()
    reseeded = Study(
        study.config.model_copy(update={"seed": 3}),
        study.folder,
        stages={"probe": study.probe, "pairs": study.pairs, "train": study.train},
    )
    with pytest.raises(DialdownError, match="seed: 0 -> 3"):
        reseeded.run()


def test_only_the_files_of_a_named_folder_are_what_a_setting_stands_for(tmp_path: Path) -> None:
    """A run or an export beside a model's files, or a link that leads nowhere, is not another
    model; a concept is not a file.
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
    texts = {"texts": ("embedded:imdb", str(model / "config.json"))}
    assert [Path(file).name for file, _, _ in file_states(texts)] == ["config.json"]


def test_a_moved_folder_has_lost_nothing(study: StubStudy, tmp_path: Path) -> None:
    study.folder = Path(shutil.move(study.folder, tmp_path / "moved"))
    assert study.run() == []


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


@pytest.mark.parametrize(
    "left",
    [[".dialdown.lock", ".dialdown.json"], [".run.json.7.partial"], [".dialdown.lock", "run.json"]],
)
def test_a_folder_whose_first_command_was_killed_at_once_can_be_used_again(
    small: Config, tmp_path: Path, left: list[str]
) -> None:
    study = StubStudy(tmp_path / "run", small)
    study.folder.mkdir()
    for name in left:
        (study.folder / name).touch()
    assert study.run() == ["probe", "pairs", "train"]


def test_what_a_killed_command_left_half_written_is_removed(study: StubStudy) -> None:
    (study.folder / "rows" / ".tuned.partial").mkdir(parents=True)
    (study.folder / "rows" / ".a.json.7.partial").write_text("half")
    (study.folder / ".run.json.7.partial").write_text("half")
    before = {*files_of(study.folder)}
    study.run()
    assert before - {*files_of(study.folder)} == {".run.json.7.partial", "rows/.a.json.7.partial"}
    assert not (study.folder / "rows" / ".tuned.partial").exists()


@pytest.mark.parametrize("error", [DialdownError("no such model"), KeyboardInterrupt()])
def test_a_run_that_did_nothing_leaves_no_folder(
    small: Config, tmp_path: Path, error: BaseException
) -> None:
    def fail() -> None:
        raise error

    study = StubStudy(tmp_path / "run", small, meanwhile=fail)
    with pytest.raises(type(error)):
        study.run()
    assert not study.folder.exists()
    study.folder.mkdir()
    with pytest.raises(type(error)):
        study.run()
    assert study.folder.exists()


@pytest.mark.parametrize("name", ["notes.txt", "run.json", "stages"])
def test_a_strangers_folder_is_refused_and_left_as_it_is(
    small: Config, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).write_text("{}")
    with pytest.raises(DialdownError, match="holds no study"):
        StubStudy(folder, small).run()
    assert files_of(folder) == {name: b"{}"}


def test_a_report_is_not_made_of_damaged_files(study: StubStudy) -> None:
    flip(study.folder / "pairs.jsonl")
    with pytest.raises(
        DialdownError, match=r"pairs\.jsonl is gone or was damaged .* repeat the command"
    ):
        report_again(study.folder)


def test_the_card_that_torch_sees_is_in_run_json(
    study: StubStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "A Card")
    study.config = study.config.model_copy(update={"device": "cpu"})
    flip(study.folder / "tuned" / "model.safetensors")
    study.run()
    run = read_sealed(study.folder / "run.json")
    assert run is not None
    assert run["machine"]["gpu"] == "A Card"


def test_a_module_that_a_setting_names_counts_by_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a package all, since its first one may only hand on; nothing of it is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_text(tmp_path / "scoring_package" / "__init__.py", "raise ValueError")
    write_text(tmp_path / "scoring_package" / "core.py", "")
    before = file_states({"judge": "scoring_package.core:S"})
    assert [Path(file).name for file, _, _ in before] == ["__init__.py", "core.py"]
    write_text(tmp_path / "scoring_package" / "core.py", "#")
    assert file_states({"judge": "scoring_package:S"}) != before
    assert file_states({"judge": "no_such_package:S", "concept": "a:b"}) == []


def test_a_folder_with_a_colon_in_its_name_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "y:v2" / "config.json", "{}")
    assert [Path(file).name for file, _, _ in file_states({"model": "y:v2"})] == ["config.json"]


def test_a_folder_with_a_stage_of_another_version_is_refused(study: StubStudy) -> None:
    stages = study.folder / "stages"
    shutil.copy(stages / "train.json", stages / "search.json")
    with pytest.raises(DialdownError, match=r"another command \(its stage search\)"):
        study.run()
