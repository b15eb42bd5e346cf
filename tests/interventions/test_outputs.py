"""Maps of what linear layers and norms write: their files, and beside other kinds of edits."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dialdown import DialdownError
from dialdown.exporting.export import export
from dialdown.files import read_arrays, write_arrays
from dialdown.interventions import Intervention, Outputs
from helpers import tiny
from helpers.edits import IDS, hooked, make
from helpers.folders import saved


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([], "lists 0 outputs, its tensors hold 72"),
        ([["transformer.h.0.mlp.c_fc", 24]], "lists 24 outputs, its tensors hold 72"),
        ([["a", 36], ["a", 36]], "name a twice"),
        ([["a", 73], ["b", -1]], "a module of -1 channels"),
        ([["a", 36.0], ["b", 36]], "outputs.0.1"),
    ],
)
def test_no_list_of_outputs_is_taken_as_it_comes(
    tmp_path: Path, outputs: list[Any], words: str
) -> None:
    path = tmp_path / "edit.safetensors"
    make(tiny.lm("gpt2"), "norms").save(path)
    arrays, header = read_arrays(path, "intervention")
    arrays = {name: array[:72] if "output" in name else array for name, array in arrays.items()}
    write_arrays(path, "intervention", arrays, {**header, "outputs": outputs})
    with pytest.raises(DialdownError, match=re.escape(words)):
        Intervention.load(path)


@pytest.mark.parametrize("kind", ["affine", "rank_one", "attention", "steer"])
def test_an_edit_of_two_kinds_comes_back(tmp_path: Path, kind: str) -> None:
    lm = tiny.lm("gpt2")
    both = replace(make(lm, kind), outputs=make(lm, "linears").outputs)
    both.save(tmp_path / "edit.safetensors")
    again = Intervention.load(tmp_path / "edit.safetensors")
    assert again.key == both.key
    folded = tiny.logits(again.fold(lm), IDS)
    torch.testing.assert_close(folded, hooked(lm, both), atol=1e-3, rtol=1e-3)


def test_the_same_numbers_at_other_modules_are_another_edit() -> None:
    first, second = (
        Intervention("it", "outputs", outputs=Outputs(widths, np.array([1.0, 2.0]), np.zeros(2)))
        for widths in ({"a": 1, "b": 1}, {"b": 1, "a": 1})
    )
    assert first.key != second.key


def test_numbers_that_are_not_as_many_as_outputs_are_refused() -> None:
    lm = tiny.lm("gpt2")
    widths = {"transformer.h.0.ln_1": lm.view.d_model}
    edit = Intervention("it", "outputs", outputs=Outputs(widths, np.ones(3), np.zeros(3)))
    with pytest.raises(DialdownError, match="3 gains and 3 offsets for 16 outputs"):
        edit.fold(lm)
    table = Outputs({"transformer.wpe": 96}, np.ones(96), np.zeros(96))
    with pytest.raises(DialdownError, match=r"wpe, and .* no such linear layer or norm"):
        Intervention("it", "outputs", outputs=table).fold(lm)


def test_a_small_gain_of_a_neuron_lets_no_wrong_bias_pass(tmp_path: Path) -> None:
    """What rounding may do to a bias is multiplied by its output's gain alone."""
    lm = tiny.lm("gpt2", dtype=torch.bfloat16)
    base = saved(lm, tmp_path / "base")
    rounding = []
    for small in (1.0, 1e-3):
        edit = replace(make(lm, "scale"), outputs=make(lm, "linears").outputs)
        edit.gain[:, 0] = small
        verified = export(base, edit, tmp_path / f"{small}").verification
        assert verified is not None
        rounding.append(verified.rounding)
    assert rounding[1] < 2 * rounding[0]
