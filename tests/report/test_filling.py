"""The page while a run goes on and where it stopped."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from dialdown.report.page import fill, write_report
from helpers.fabricated_run import MAIN, unfinish, write_run

SMALL: dict[str, Any] = {
    "main": {name: MAIN[name] for name in ("none", "dpo", "patch_four_groups", "edit_probe_scale")},
    "protocols": ("strict",),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", **SMALL)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def page(folder: Path, *, running: bool = True) -> str:
    return read(fill(folder, running=running))


def test_the_page_is_there_before_anything_is_done(run: Path) -> None:
    for path in run.iterdir():
        if path.name != "run.json":
            path.unlink()
    info = json.loads(read(run / "run.json"))
    (run / "run.json").write_text(json.dumps({**info, "stages": {}}))
    text = page(run)
    assert "Still running (as of" in text
    assert "no stage is done yet" in text
    assert "reloads by itself" in text
    assert "<h1>embedded:smollm2-135m</h1>" in text
    assert "<figure" not in text
    assert [path.name for path in run.iterdir() if path.suffix == ".html"] == ["report.html"]


def test_the_page_fills_as_rows_are_measured(run: Path) -> None:
    unfinish(run, rows=3)
    text = page(run)
    assert '<meta http-equiv="refresh"' in text
    assert "3 of 8 rows measured" in text
    assert {*re.findall(r'<figure id="([^"]+)"', text)} >= {"tradeoff-strict"}
    assert "figure-1-layer-effects-strict" in text
    assert "after it: lower by" in text
    # Nothing leads to files that only a whole run has, and nothing but the page is written.
    assert not re.findall(r'href="(?:figures|tables)/', text)
    assert not (run / "tables").exists()
    assert not (run / "figures").exists()


def test_neurons_are_shown_before_any_row(run: Path) -> None:
    unfinish(run, rows=0)
    text = page(run)
    assert "figure-1-layer-effects-strict" in text
    assert 'id="tradeoff"' not in text
    assert "done: probe, pairs, train, activations, neurons." in text


def test_an_interrupted_run_says_how_far_it_got(run: Path) -> None:
    unfinish(run, rows=3)
    for text in (page(run, running=False), read(write_report(run))):
        assert 'http-equiv="refresh"' not in text
        assert "This run stopped before its end" in text
        assert "3 of 8 rows measured" in text


def test_a_page_that_was_filled_ends_as_one_drawn_at_once(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    unfinish(other, rows=3)
    fill(other, running=True)
    for name in ("results.json", "run.json"):
        shutil.copy(run / name, other / name)
    (other / "results-so-far.json").unlink()
    fill(other, running=True)
    assert read(write_report(other)) == read(write_report(run))
    assert "Still running" not in read(other / "report.html")


def test_a_front_that_was_interrupted_is_not_drawn_as_a_whole_one(run: Path) -> None:
    measured = json.loads(read(run / "results.json"))
    (run / "front-so-far.json").write_text(json.dumps({**measured, "of": 49}))
    for text in (page(run, running=False), read(write_report(run))):
        assert "This run stopped before its end" in text
        assert f"8 rows measured, {len(measured['rows'])} of 49 of the front" in text
    assert "So far 8 of 49 rows are measured." in read(run / "report.html")
    assert not (run / "figures").exists()
    shutil.move(run / "front-so-far.json", run / "front.json")
    assert "So far" not in read(write_report(run))
    assert (run / "figures").exists()
