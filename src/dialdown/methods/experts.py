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
from ..interventions.explain import as_scale
from ..interventions.intervention import Intervention
from ..models.lm import LM
from ..progress import Progress, with_bar
from .labelled import Labels, encode_labelled, highest, pooled

MEMORY = 1 << 30
RANKED = 512  # neurons at a time


@with_bar
def auroc(
    lm: LM,
    texts: Sequence[str],
    labels: Labels,
    *,
    max_tokens: int = 128,
    memory: int = MEMORY,
    progress: Progress | None = None,
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
    return _areas(lm, ids, toxic, progress, memory)


def _areas(
    lm: LM,
    ids: Sequence[Sequence[int]],
    toxic: NDArray[np.bool_],
    progress: Progress | None,
    memory: int = MEMORY,
) -> NDArray[np.float64]:
    layers = range(lm.view.n_layers)
    together = max(1, memory // (4 * len(ids) * lm.view.n_neurons))
    starts = layers[::together]
    areas: list[NDArray[np.float64]] = []
    for reading, start in enumerate(starts):

        def tell(done: int, texts: int, before: int = reading) -> None:
            if progress:
                progress("reading labelled texts", before * texts + done, len(starts) * texts)

        values = pooled(lm, ids, highest, layers[start : start + together], tell)
        areas += [_area(of_layer, toxic) for of_layer in values]
    return np.stack(areas)


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


@with_bar
def aura(
    lm: LM,
    texts: Sequence[str],
    labels: Labels,
    *,
    max_tokens: int = 128,
    progress: Progress | None = None,
) -> Intervention:
    """AurA: the gain 1 - 2 (A - .5) on every neuron whose area A is above .5, of kind `scale`; no
    number to choose. Arguments and errors are those of `auroc`.
    """
    ids, toxic, record = encode_labelled(lm, texts, labels, max_tokens)
    areas = _areas(lm, ids, toxic, progress)
    return as_scale("aura", np.where(areas > 0.5, 1 - 2 * (areas - 0.5), 1.0), record)


@with_bar
def damp(
    lm: LM,
    texts: Sequence[str],
    labels: Labels,
    *,
    share: float = 0.05,
    factor: float = 0.5,
    max_tokens: int = 128,
    progress: Progress | None = None,
) -> Intervention:
    """Damp: one gain, `factor`, on the share of all neurons whose area is highest, of kind `scale`;
    see `auroc` for the other arguments.

    Raises:
        DialdownError: a share outside 0 to 1, a factor that is no finite number; see `auroc`.
    """
    if not 0 < share <= 1:
        raise DialdownError(
            f"A share of {share} of the neurons cannot be dampened: pass a number above 0 and at "
            "most 1."
        )
    if not np.isfinite(factor):
        raise DialdownError(
            f"Activations cannot be multiplied by {factor}: pass a finite factor, 0.5 for half."
        )
    ids, toxic, record = encode_labelled(lm, texts, labels, max_tokens)
    areas = _areas(lm, ids, toxic, progress)
    first = np.argsort(-areas.ravel(), kind="stable")[: max(1, round(share * areas.size))]
    selected = np.isin(np.arange(areas.size), first).reshape(areas.shape)
    gain = np.where(selected, factor, 1.0)
    record["share"] = share
    return Intervention("damp", "scale", gain, np.zeros_like(gain), selected, record=record)


def det0(lm: LM, texts: Sequence[str], labels: Labels, **options: Any) -> Intervention:
    """Det0: `damp` with a factor of 0, so that the neurons are silent."""
    return replace(damp(lm, texts, labels, factor=0.0, **options), name="det0")
