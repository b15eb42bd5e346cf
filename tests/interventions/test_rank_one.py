"""Edits of attention: what they are called, and models they do not fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dialdown import DialdownError
from dialdown.models import LM
from helpers import tiny
from helpers.edits import hooked, make


def test_an_edit_of_attention_says_where_it_is(llama: LM) -> None:
    edit = make(llama, "attention")
    read = np.count_nonzero(edit.rank_one.reads) if edit.rank_one else 0
    assert repr(edit) == f"Intervention(it: rank_one, {read} of 48 channels of attention)"
    assert f"{read} of 48 channels of attention" in edit._repr_html_()
    # One effect at two sites is two edits.
    assert edit.rank_one is not None
    elsewhere = replace(edit, rank_one=replace(edit.rank_one, site="mlp"))
    assert elsewhere.key != edit.key
    with pytest.raises(DialdownError, match="shape \\(3, 16\\)"):
        hooked(llama, elsewhere)
    unknown = replace(edit, rank_one=replace(edit.rank_one, site="attn"))  # type: ignore[arg-type]
    with pytest.raises(DialdownError, match=r"Unknown site 'attn'.*attention"):
        hooked(llama, unknown)
    narrow = tiny.lm("llama", num_attention_heads=1, num_key_value_heads=1, head_dim=8)
    with pytest.raises(DialdownError, match="3 layers whose attention has 8 channels: train it"):
        hooked(narrow, edit)
