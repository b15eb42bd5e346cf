"""A finished study of which something is lost, or asked for otherwise: its command mends it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dialdown.report.run import load
from dialdown.study import measure
from helpers.commands import invoke, run_until

FEW = ("protocols=strict", "interventions.extent=conclusions", "interventions.families=edits")
FLAGS = [flag for setting in FEW for flag in ("--set", setting)]


@pytest.fixture(scope="module")
def finished(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repairs") / "study"
    result = run_until("evaluate", study_file, "--out", folder, *FLAGS)
    assert result.exit_code == 0, result.exception
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.mark.parametrize("stage", ["base", "evaluate"])
def test_rows_of_the_base_that_were_lost_are_not_all_that_is_shown_afterwards(
    copy: Path, study_file: Path, stage: str
) -> None:
    rows = len(load(copy).results)
    (copy / "rows" / "strict-none.json").unlink()
    result = run_until(stage, study_file, "--out", copy, *FLAGS)
    assert result.exit_code == 0, result.exception
    run = load(copy)
    assert (len(run.results), run.of) == (rows, None)


def test_lost_results_are_gathered_again_where_no_report_was_made(
    copy: Path, study_file: Path
) -> None:
    before = (copy / "results.json").read_bytes()
    (copy / "results.json").unlink()
    result = run_until("evaluate", study_file, "--out", copy, *FLAGS)
    assert result.exit_code == 0, result.exception
    assert (copy / "results.json").read_bytes() == before


def test_a_front_that_was_interrupted_goes_with_the_settings_that_asked_for_it(
    copy: Path, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invoke("run", study_file, "--out", copy, *FLAGS).exit_code == 0

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "measure", stop)
    front = ["--set", "front.count=4"]
    assert invoke("run", study_file, "--out", copy, *FLAGS, *front).exit_code == 130
    assert json.loads((copy / "front-so-far.json").read_text())["of"] > 20
    assert "This run stopped before its end" in invoke_report(copy)
    assert invoke("run", study_file, "--out", copy, *FLAGS).exit_code == 0
    assert not [*copy.glob("front*")]
    assert not [*(copy / "tables").glob("gains-*")]
    assert "This run stopped before its end" not in (copy / "report.html").read_text()


def invoke_report(folder: Path) -> str:
    """The page of a folder, drawn again."""
    assert invoke("report", folder).exit_code == 0
    return (folder / "report.html").read_text()
