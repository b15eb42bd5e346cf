"""A ladder that goes on with further methods: what earlier commands found and took stays."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from dialdown.study import gains
from helpers.commands import invoke

SLOW = 1.5


def fitted(study: Path, out: Path, methods: str, *more: str) -> dict[str, Any]:
    """Run a ladder, and give what its stage `fit` told."""
    few = [f'ladder.texts=["{study.parent / "text.txt"}"]', "ladder.prompts=6", *more]
    sets = [word for setting in few for word in ("--set", setting)]
    given = ["--config", study, "--out", out, "--methods", methods, *sets]
    result = invoke("ladder", study.parent / "model", *given)
    assert result.exit_code == 0, result.exception
    told: dict[str, Any] = json.loads((out / "run.json").read_text())["stages"]["fit"]
    return told


def test_what_a_training_left_out_is_said_as_long_as_its_method_is_there(
    study_file: Path, tmp_path: Path
) -> None:
    sentence = "3 pairs were held out for validation, a quarter of all, of the 64 asked for"
    for methods in ("gains", "gains,caa"):
        told = fitted(study_file, tmp_path / "out", methods, "gains.eval_pairs=64")
        assert sentence in [note["sentence"] for note in told["notes"]], methods
    told = fitted(study_file, tmp_path / "out", "caa", "gains.eval_pairs=64")
    assert told["notes"] == []


def test_what_several_methods_learn_from_costs_each_of_them_its_time(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that joins when it is there already."""
    original = gains.fisher_information

    def slowly(*given: Any, **options: Any) -> Any:
        time.sleep(SLOW)
        return original(*given, **options)

    monkeypatch.setattr(gains, "fisher_information", slowly)
    before = fitted(study_file, tmp_path / "out", "labels")["methods"]
    after = fitted(study_file, tmp_path / "out", "labels,step")["methods"]
    assert after["labels"] == before["labels"]
    assert after["labels"]["seconds"] >= SLOW
    assert after["step"]["seconds"] >= SLOW
