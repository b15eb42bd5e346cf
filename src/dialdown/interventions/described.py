"""An intervention in words, and as a card in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..cards import card

if TYPE_CHECKING:
    from .intervention import Intervention


def acts_on(edit: Intervention) -> list[str]:
    """How many neurons, channels and outputs an edit acts on, in words, and the residual stream
    where it steers besides; empty for steering alone.
    """
    parts, neurons = [], edit.selected
    if edit.rank_one is not None:
        read = edit.rank_one.inputs_read
        if edit.rank_one.site == "attention":
            parts.append(f"{np.count_nonzero(read):,} of {read.size:,} channels of attention")
        else:
            neurons = neurons | read if neurons.shape == read.shape else read
    if edit.outputs is not None:
        parts.append(f"{edit.outputs.moved:,} of {edit.outputs.gain.size:,} outputs")
    if neurons.any() or (neurons.size and not parts):
        parts.insert(0, f"{np.count_nonzero(neurons):,} of {neurons.size:,} neurons")
    if edit.vector is not None and (parts or edit.kind != "steer"):
        parts.append("the residual stream")
    return parts


def card_of(edit: Intervention) -> str:
    """The HTML of what an edit is and how many neurons it selects in each layer."""
    ranges = {
        f"{name}{of}": f"{numbers.min():.4g} to {numbers.max():.4g}"
        for maps, of in ((edit, ""), (edit.outputs, " of outputs"))
        if maps is not None
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
