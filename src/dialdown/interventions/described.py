"""An intervention in words, and as a card in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..cards import card

if TYPE_CHECKING:
    from .intervention import Intervention


def acts_on(edit: Intervention) -> list[str]:
    """How many neurons, channels or outputs an edit acts on, in words; empty for steering."""
    if edit.outputs is not None:
        return [f"{edit.outputs.moved:,} of {edit.outputs.gain.size:,} outputs"]
    if edit.rank_one is not None and edit.rank_one.site == "attention":
        read = edit.rank_one.inputs_read
        return [f"{np.count_nonzero(read):,} of {read.size:,} channels of attention"]
    return [f"{edit.neurons:,} of {edit.selected.size:,} neurons"] if edit.gain.size else []


def card_of(edit: Intervention) -> str:
    """The HTML of what an edit is and how many neurons it selects in each layer."""
    maps = edit if edit.outputs is None else edit.outputs
    ranges = {
        name: f"{numbers.min():.4g} to {numbers.max():.4g}"
        for name, numbers, rest in (("gains", maps.gain, 1), ("offsets", maps.offset, 0))
        if (numbers != rest).any()
    }
    facts = {
        "kind": edit.kind,
        "acts on": ", ".join(acts_on(edit)) or None,
        **ranges,
        "vector": None if edit.vector is None else f"length {np.linalg.norm(edit.vector):.4g}",
        "α": edit.alpha,
        "β": edit.beta,
        "control of": edit.control_of,
        **edit.record,
    }
    title = f"Intervention {edit.name}; a bar is the neurons selected in a layer"
    return card(title, facts, bars=edit.selected.sum(-1).tolist())
