"""AurA, Damp and Det0: dampen the neurons that tell toxic from other texts (METHOD §10).

How well a neuron tells is the area under the ROC curve of its highest activation over a text's
tokens (Suau et al., 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ..errors import DialdownError
from ..interventions.intervention import Intervention
from ..models.lm import LM
from ..models.sites import mlp_linears
from .labelled import Labels, encode_labelled, highest, highest_of_all, pooled
from .places import MethodSite, Places, places_of

MEMORY = 1 << 30
RANKED = 512  # neurons at a time


def auroc(
    lm: LM, texts: Sequence[str], labels: Labels, *, max_tokens: int = 128, memory: int = MEMORY
) -> NDArray[np.float64]:
    """How well each neuron's highest activation over a text's tokens tells texts labelled 1 from
    those labelled 0.

    The texts, each cut to `max_tokens`, are read once where the highest activations of all neurons
    fit into `memory` bytes, and otherwise once for as many layers as do.

    Returns:
        (L, F) float64, the area under the ROC curve: 1 where every text with the concept is above
        every other, .5 where a neuron cannot tell; equal activations count half.

    Raises:
        DialdownError: texts and labels differ in number, a class has fewer than 10 texts, a text
            has no tokens or exceeds the context, or an activation is not a finite number.
    """
    ids, toxic, _ = encode_labelled(lm, texts, labels, max_tokens)
    return _areas(places_of(lm, "neurons"), ids, toxic, memory).reshape(lm.view.shape)


def _areas(
    places: Places, ids: Sequence[Sequence[int]], toxic: NDArray[np.bool_], memory: int = MEMORY
) -> NDArray[np.float64]:
    """(channels of all modules,); as published, attention sinks are tokens like others."""
    pool = highest if places.neurons else highest_of_all
    readings = _readings(places, memory // (4 * len(ids)))
    areas: list[NDArray[np.float64]] = []
    for number, paths in enumerate(readings):
        values = pooled(places, ids, pool, paths, (number, len(readings)))
        areas += [_area(of_module, toxic) for of_module in values]
    return np.concatenate(areas)


def _readings(places: Places, channels: int) -> list[list[str]]:
    """The modules whose channels are held together, as many as `channels` or one module."""
    readings: list[list[str]] = []
    held = 0
    for path, width in places.widths.items():
        if not readings or held + width > channels:
            readings.append([])
            held = 0
        readings[-1].append(path)
        held += width
    return readings


def _area(values: NDArray[np.float32], toxic: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(F,) areas under the ROC curves of (n, F) values, by the sum of the ranks of one class."""
    ones = int(toxic.sum())
    others = len(toxic) - ones
    # Ranks take several times the memory of what is ranked.
    sums = [
        rankdata(values[:, at : at + RANKED], axis=0)[toxic].sum(0)
        for at in range(0, values.shape[1], RANKED)
    ]
    return np.asarray((np.concatenate(sums) - ones * (ones + 1) / 2) / (ones * others))


def aura(
    lm: LM,
    texts: Sequence[str],
    labels: Labels,
    *,
    site: MethodSite = "neurons",
    max_tokens: int = 128,
) -> Intervention:
    """AurA: the gain 1 - 2 (A - .5) on every neuron whose area A is above .5, of kind `scale`; no
    number to choose.

    Args:
        lm, texts, labels, max_tokens: see `auroc`.
        site: `neurons`, or `published`: the outputs of every linear layer of the MLPs, by their
            highest over all tokens, attention sinks too; an intervention of kind `outputs`.

    Raises:
        DialdownError: no such site; see `auroc`.
    """
    places = places_of(lm, site, mlp_linears)
    ids, toxic, record = encode_labelled(lm, texts, labels, max_tokens)
    areas = _areas(places, ids, toxic)
    gain = np.where(areas > 0.5, 1 - 2 * (areas - 0.5), 1.0)
    return places.edit("aura", "scale", gain, np.zeros_like(gain), record)


def damp(
    lm: LM,
    texts: Sequence[str],
    labels: Labels,
    *,
    site: MethodSite = "neurons",
    share: float = 0.05,
    factor: float = 0.5,
    max_tokens: int = 128,
) -> Intervention:
    """Damp: one gain, `factor`, on the share of all neurons, or outputs, whose area is highest; see
    `aura` for the other arguments.

    Raises:
        DialdownError: a share outside 0 to 1, a factor that is not a finite number; see `aura`.
    """
    if not 0 < share <= 1:
        raise DialdownError(
            f"A share of {share} cannot be dampened: pass a number above 0 and at most 1."
        )
    if not np.isfinite(factor):
        raise DialdownError(
            f"Activations cannot be multiplied by {factor}: pass a finite factor, 0.5 for half."
        )
    places = places_of(lm, site, mlp_linears)
    ids, toxic, record = encode_labelled(lm, texts, labels, max_tokens)
    areas = _areas(places, ids, toxic)
    gain = np.ones_like(areas)
    gain[np.argsort(-areas, kind="stable")[: max(1, round(share * areas.size))]] = factor
    return places.edit("damp", "scale", gain, np.zeros_like(gain), {**record, "share": share})


def det0(lm: LM, texts: Sequence[str], labels: Labels, **options: Any) -> Intervention:
    """Det0: `damp` with a factor of 0, so that the neurons are silent."""
    edit = damp(lm, texts, labels, factor=0.0, **options)
    return replace(edit, name=edit.name.replace("damp", "det0"))
