"""What the commands of an edit say while they work."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dialdown.exporting import save_delta
from dialdown.interventions.explain import as_scale
from helpers import tiny
from helpers.commands import invoke


def test_apply_shows_how_far_it_is(tmp_path: Path) -> None:
    lm, base = tiny.lm("llama"), tmp_path / "base"
    lm.model.save_pretrained(base)
    lm.tokenizer.save_pretrained(base)
    save_delta(as_scale("half", np.full(lm.view.shape, 0.5), {}), base, tmp_path / "delta")
    result = invoke("apply", tmp_path / "delta", "--out", tmp_path / "out", "--base", base)
    assert result.exit_code == 0, result.exception
    for work in ("exporting: 3 of 3", "verifying: 32 of 32"):
        assert work in result.output
