"""What the settings of a study's models stand for: a commit, a device, a dtype."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from dialdown import DialdownError
from dialdown.study import Config, Study
from dialdown.study.ladder_fit import key_of
from helpers.stub_study import StubStudy
from helpers.study_files import write_lines

FIRST, SECOND = 40 * "a", 40 * "b"


class Cached:
    """A repository in the cache of the hub's client, which asks no hub."""

    def __init__(self, cache: Path, name: str) -> None:
        self.folder = cache / f"models--{name.replace('/', '--')}"
        for commit in (FIRST, SECOND):
            (self.folder / "snapshots" / commit).mkdir(parents=True)
            write_lines(self.folder / "snapshots" / commit / "config.json", [{}])
        (self.folder / "refs").mkdir()
        self.move(FIRST)

    def move(self, commit: str) -> None:
        """Let its main branch be a commit."""
        (self.folder / "refs" / "main").write_text(commit)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Cached]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return {name: Cached(tmp_path / "cache", name) for name in ("me/base", "me/tuned")}


def begun(config: Config, folder: Path) -> Study:
    """A study whose first stage was done."""
    study = Study(config, folder)
    with study.work.ledger.claim():
        study.work.ledger.record("probe", 0.0, {})
        study.work.ledger.record("base", 0.0, {})
        study.work.ledger.record("train", 0.0, {})
    return study


@pytest.mark.parametrize(
    ("moved", "says"),
    [
        ("me/base", f"revision: '{FIRST}' -> '{SECOND}'"),
        ("me/tuned", f"tuned: 'me/tuned@{FIRST}' -> 'me/tuned@{SECOND}'"),
    ],
)
def test_a_study_does_not_go_on_with_another_commit(
    cached: dict[str, Cached], small: Config, tmp_path: Path, moved: str, says: str
) -> None:
    config = small.model_copy(update={"model": "me/base", "tuned": "me/tuned"})
    before = begun(config, tmp_path / "run")
    # All stages and workers load the one that the study began with, whatever the hub has since.
    assert before.work.config.revision == FIRST
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["config"]["revision"] == run["standing"]["revision"] == FIRST
    again = Study(config, tmp_path / "run").work.ledger
    assert again.finished("train")
    cached[moved].move(SECOND)
    after = Study(config, tmp_path / "run")
    assert after.work.ledger.inputs("train") != again.inputs("train")
    assert after.work.ledger.measured_on() != again.measured_on()
    with pytest.raises(DialdownError, match="holds a study with other settings") as refused:
        after.run()
    assert says in str(refused.value)
    if moved == "me/base":
        # It goes on with what it began with.
        same = Study(config.model_copy(update={"revision": FIRST}), tmp_path / "run")
        assert same.work.ledger.finished("train")


def test_a_study_does_not_go_on_on_another_kind_of_device(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    stub = StubStudy(tmp_path / "run", small)
    assert stub.run() == ["probe", "pairs", "train"]
    run = json.loads((stub.folder / "run.json").read_text())
    assert run["config"]["device"] is None
    assert run["standing"] == {"device": "cpu", "dtype": "float32", "revision": None}
    # To say what it is by itself changes nothing.
    stub.config = small.model_copy(update={"device": "cpu", "dtype": "float32"})
    assert stub.run() == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 34, 1 << 34))
    stub.config = small
    (stub.folder / "run.json").unlink()
    with pytest.raises(DialdownError, match="device: 'cpu' -> 'cuda'"):
        stub.run()


def test_a_method_of_a_ladder_is_fitted_anew_for_another_commit(
    cached: dict[str, Cached], small: Config, tmp_path: Path
) -> None:
    config = small.model_copy(update={"model": "me/base"})
    before = key_of(Study(config, tmp_path).work, "dpo")
    cached["me/base"].move(SECOND)
    assert key_of(Study(config, tmp_path).work, "dpo") != before


def test_a_worker_takes_what_its_study_knows(
    cached: dict[str, Cached], small: Config, tmp_path: Path
) -> None:
    """Its machine may have another cache, or none."""
    config = small.model_copy(update={"model": "me/base", "tuned": "me/tuned"})
    work = Study(config, tmp_path).work
    known = work.ledger.standing
    cached["me/tuned"].move(SECOND)
    worker = type(work)(work.config, tmp_path, work.stages, standing=known)
    assert worker.ledger.measured_on() == work.ledger.measured_on()
