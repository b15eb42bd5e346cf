"""What a command says while it works, when it is asked to end, and of the machine ahead."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from dialdown.cli import main as cli
from dialdown.cli.shared import Display
from dialdown.study import load_config
from dialdown.study.needs import needs, shape_of, tokens_by_stage
from helpers import tiny
from helpers.commands import invoke


@pytest.mark.parametrize("kept", [True, False])
def test_being_asked_to_end_says_what_is_kept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kept: bool
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    folder = tmp_path / "run"
    if kept:
        folder.mkdir()
        (folder / "pairs.jsonl").touch()
    with pytest.raises(SystemExit) as ended, cli.interruptible(folder):
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    told = capsys.readouterr().err
    assert ("the same command goes on there" in told) is kept
    assert (str(folder) in told) is kept
    assert ("nothing is kept" in told) is not kept
    assert signal.getsignal(signal.SIGTERM) == before


def test_one_bar_moves_forward_over_all_stages_and_tells_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    display = Display({"probe": 100.0, "evaluate": 300.0})
    display.enter("probe", False)
    for done in range(11):
        now = 2.0 * done
        display.progress("reading labelled texts", done, 10)
    now = 20.0
    display.progress("fitting", 0, 5)
    display.enter("evaluate", False)
    display.progress("evaluating", 0, 30)
    now = 40.0
    display.progress("evaluating, strict-none measured", 10, 30)
    lines = capsys.readouterr().out.splitlines()
    # A quarter took 20 s and a third of the rest 20 s more: half is done after 40 s.
    assert lines[-1].strip() == (
        "evaluate: evaluating, strict-none measured: 10 of 30; about 40 s left"
    )
    assert display.bar.tasks[0].completed == pytest.approx(200)
    assert display.bar.tasks[0].total == pytest.approx(400)


def test_work_without_stages_has_a_bar_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    display = Display()
    for work in ("fetching", "converting"):
        start = now
        for done in range(5):
            now = start + 20.0 * done
            display.progress(work, done, 4)
    display.progress("nothing", 0, 0)
    said = [line.strip() for line in capsys.readouterr().out.splitlines()]
    # The pace of one work is not that of the next.
    assert said[1] == "fetching: 2 of 4; about 40 s left"
    assert "converting: 2 of 4; about 40 s left" in said


def test_what_was_done_before_says_nothing_about_the_pace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    display = Display({"probe": 100.0, "evaluate": 300.0})
    display.enter("probe", True)
    display.enter("evaluate", False)
    display.progress("evaluating", 10, 30)
    now = 50.0
    display.progress("evaluating, strict-dpo measured", 20, 30)
    assert "about 50 s left" in capsys.readouterr().out


def test_doctor_tells_what_a_study_of_a_model_takes(tmp_path: Path) -> None:
    lm = tiny.lm("llama")
    lm.model.save_pretrained(tmp_path / "model")
    lines = invoke("doctor", tmp_path / "model", "--set", "dpo.epochs=3").stdout.splitlines()
    parameters = sum(weight.numel() for weight in lm.model.parameters())
    assert f"{parameters:,} parameters" in lines[0]
    assert [line.split()[0] for line in lines[2:8]] == [
        "probe",
        "base",
        "pairs",
        "train",
        "activations",
        "evaluate",
    ]
    assert "fits" in lines[-1]


def test_needs_grow_with_what_they_are_made_of(tmp_path: Path) -> None:
    tiny.lm("llama").model.save_pretrained(tmp_path / "model")
    flags = {"model": str(tmp_path / "model"), "interventions.extent": "tables"}
    config = load_config(preset="demo", flags=flags)
    shape = shape_of(config)
    assert shape.itemsize == 4
    of = {need.stage: need for need in needs(config, shape, workers=2)}
    larger = load_config(preset="demo", flags={**flags, "evaluation.count": 256, "dpo.epochs": 2})
    more = {need.stage: need for need in needs(larger, shape, workers=4)}
    assert more["train"].tokens == 2 * of["train"].tokens
    assert more["evaluate"].tokens > 1.3 * of["evaluate"].tokens
    assert more["evaluate"].memory > 1.5 * of["evaluate"].memory
    # A model that is given needs no pairs and no training.
    given = load_config(preset="demo", flags={**flags, "tuned": "elsewhere"})
    assert not {"pairs", "train"} & tokens_by_stage(given).keys()
