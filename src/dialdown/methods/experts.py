"""AurA, Damp and Det0: dampen the neurons that tell toxic from other texts (METHOD §10).

How well a neuron tells is the area under the ROC curve of its highest activation over a text's
tokens (Suau et al., 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ..errors import DialdownError
from ..interventions.intervention import Intervention
from ..models.lm import LM
from ..progress import Progress, with_bar
from .labelled import Labelled, Labels, highest, pooled

MEMORY = 1 << 30
RANKED = 512
"""Neurons that are ranked at a time."""


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

    The texts are read once where the highest activations of all neurons fit into `memory`, and
    otherwise once for as many layers as do.

    Args:
        lm: the model.
        texts: the labelled texts.
        labels: 1 where a text has the concept, else 0.
        max_tokens: texts are cut here.
        memory: bytes of activations that are kept at a time, at least a layer's; 1 GiB by default.
        progress: called after each batch of texts.

    Returns:
        (L, F) float64, the area under the ROC curve: 1 where every text with the concept is above
        every other, .5 where a neuron cannot tell; equal activations count half.

    Raises:
        DialdownError: texts and labels differ in number, a class has fewer than 10 texts, a text
            has no tokens or exceeds the context, or an activation is not a finite number.
    """
    return _areas(lm, Labelled.of(lm, texts, labels, max_tokens), progress, memory)


def _areas(
    lm: LM, data: Labelled, progress: Progress | None, memory: int = MEMORY
) -> NDArray[np.float64]:
    layers = range(lm.view.n_layers)
    together = max(1, memory // (4 * len(data.ids) * lm.view.n_neurons))
    areas = []
    for start in layers[::together]:
        group = layers[start : start + together]

        def tell(done: int, batches: int, start: int = start) -> None:
            if progress:
                readings = len(layers[::together])
                progress(
                    "reading labelled texts", start // together * batches + done, readings * batches
                )

        values = pooled(lm, data.ids, highest, group, tell)
        areas += [_area(of_layer, data.toxic) for of_layer in values]
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
    name: str = "aura",
    progress: Progress | None = None,
) -> Intervention:
    """AurA: the gain 1 - 2 (A - .5) on every neuron whose area A is above .5; no number to choose.

    Args, Raises: see `auroc`. `name` is the name its results carry.

    Returns:
        An intervention of kind `scale`.
    """
    data = Labelled.of(lm, texts, labels, max_tokens)
    areas = _areas(lm, data, progress)
    gain = np.where(areas > 0.5, 1 - 2 * (areas - 0.5), 1.0)
    return Intervention(name, "scale", gain, np.zeros_like(gain), areas > 0.5, record=data.record)


@with_bar
def damp(
    lm: LM,
    texts: Sequence[str],
    labels: Labels,
    *,
    share: float = 0.05,
    factor: float = 0.5,
    max_tokens: int = 128,
    name: str = "damp",
    progress: Progress | None = None,
) -> Intervention:
    """Damp: one gain, `factor`, on the share of all neurons whose area is highest.

    Args:
        lm, texts, labels, max_tokens, progress: see `auroc`.
        share: of the neurons, above 0 and at most 1.
        factor: what their activations are multiplied by.
        name: the name its results carry.

    Returns:
        An intervention of kind `scale`.

    Raises:
        DialdownError: a share or a factor that cannot work; see `auroc`.
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
    data = Labelled.of(lm, texts, labels, max_tokens)
    areas = _areas(lm, data, progress)
    first = np.argsort(-areas.ravel(), kind="stable")[: max(1, round(share * areas.size))]
    selected = np.isin(np.arange(areas.size), first).reshape(areas.shape)
    gain = np.where(selected, factor, 1.0)
    record = {**data.record, "share": share}
    return Intervention(name, "scale", gain, np.zeros_like(gain), selected, record=record)


@with_bar
def det0(
    lm: LM,
    texts: Sequence[str],
    labels: Labels,
    *,
    share: float = 0.05,
    max_tokens: int = 128,
    name: str = "det0",
    progress: Progress | None = None,
) -> Intervention:
    """Det0: `damp` with a factor of 0, so that the neurons are silent."""
    return damp(
        lm,
        texts,
        labels,
        share=share,
        factor=0.0,
        max_tokens=max_tokens,
        name=name,
        progress=progress,
    )
