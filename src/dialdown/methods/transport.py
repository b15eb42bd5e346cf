"""Mean-AcT and Linear-AcT: move the activations of toxic texts to where those of other texts are
(METHOD §10; Rodriguez et al., 2024).

With a and b the mean activations of n toxic and n other texts, sorted, a neuron's map is the shift
by mean b - mean a, or the line that fits b to a best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..interventions.folding import affine_hook
from ..interventions.intervention import Intervention
from ..models.decoding import batches, read
from ..models.hooks import neuron_hooks
from ..models.lm import LM
from ..progress import Progress, with_bar
from .labelled import Labels, Pool, check_finite, encode_labelled, mean, mean_without_sinks, pooled

Floats = NDArray[np.float64]
Fit = Callable[[Floats, Floats], tuple[Floats, Floats]]
"""From (n, F) mean activations of toxic and of other texts to gains and offsets, (F,) each."""


@with_bar
def mean_act(
    lm: LM,
    texts: Sequence[str],
    labels: Labels,
    *,
    sequential: bool = True,
    max_tokens: int = 128,
    progress: Progress | None = None,
) -> Intervention:
    """Mean-AcT: each activation moves by the difference of the classes' means over texts, attention
    sinks left out, an intervention of kind `shift`. Arguments and errors are those of `linear_act`.
    """
    maps = _maps(
        lm, texts, labels, _mean_shift, mean_without_sinks, sequential, max_tokens, progress
    )
    return replace(maps, name="mean_act", kind="shift")


@with_bar
def linear_act(
    lm: LM,
    texts: Sequence[str],
    labels: Labels,
    *,
    sequential: bool = True,
    max_tokens: int = 128,
    progress: Progress | None = None,
) -> Intervention:
    """Linear-AcT: each activation m becomes gain * m + offset, the least-squares line from the
    sorted means over tokens of toxic texts to those of other texts, an intervention of kind
    `affine`. A neuron that does the same on every toxic text is shifted.

    Args:
        lm, texts, labels, max_tokens, progress: see `auroc`; of either class the first n texts are
            used, n being the number of the smaller class.
        sequential: fit the layers one after the other, each with the maps of earlier ones acting,
            as published. All texts then go through the model at once, so memory grows with their
            number times the longest: about 16 bytes for each token and neuron of a layer, in
            float32.

    Raises:
        DialdownError: see `encode_labelled`, or an activation is not a finite number.
    """
    # A line multiplies what attention sinks have, too, so they have a part in it.
    return _maps(lm, texts, labels, _line, mean, sequential, max_tokens, progress)


def _mean_shift(toxic: Floats, other: Floats) -> tuple[Floats, Floats]:
    return np.ones(toxic.shape[1]), other.mean(0) - toxic.mean(0)


def _line(toxic: Floats, other: Floats) -> tuple[Floats, Floats]:
    a, b = np.sort(toxic, axis=0), np.sort(other, axis=0)
    mean_a, mean_b = a.mean(0), b.mean(0)
    spread = ((a - mean_a) ** 2).sum(0)
    together = ((a - mean_a) * (b - mean_b)).sum(0)
    gain = np.divide(together, spread, out=np.ones_like(spread), where=spread > 0)
    return gain, mean_b - gain * mean_a


def _maps(
    lm: LM,
    texts: Sequence[str],
    labels: Labels,
    fit: Fit,
    pool: Pool,
    sequential: bool,
    max_tokens: int,
    progress: Progress | None,
) -> Intervention:
    encoded, toxic, record = encode_labelled(lm, texts, labels, max_tokens)
    n = int(min(toxic.sum(), (~toxic).sum()))
    ids = [encoded[row] for mask in (toxic, ~toxic) for row in np.flatnonzero(mask)[:n]]
    gain = np.ones(lm.view.shape)
    offset = np.zeros_like(gain)

    def fit_layer(layer: int, means: Floats) -> None:
        gain[layer], offset[layer] = fit(means[:n], means[n:])

    def tell(done: int, total: int) -> None:
        if progress:
            progress("fitting maps", done, total)

    if sequential:
        (batch,) = batches(lm, ids, len(ids))
        own, rows = batch.mask[..., None] == 1, list(batch.rows)

        def act(layer: int, m: Tensor) -> Tensor | None:
            means = np.empty((len(ids), lm.view.n_neurons))
            means[rows] = pool(m, own.to(m.device)).cpu().numpy()
            check_finite(lm, layer, means)
            fit_layer(layer, means)
            tell(layer + 1, lm.view.n_layers)
            return affine_hook(lm, gain, offset, [layer], "all")(layer, m)

        with torch.inference_mode(), neuron_hooks(lm, act):
            read(lm, batch)
    else:
        for layer, means in enumerate(pooled(lm, ids, pool, range(lm.view.n_layers), tell)):
            fit_layer(layer, means)
    everyone = np.ones(gain.shape, dtype=bool)
    record["sequential"] = sequential
    return Intervention("linear_act", "affine", gain, offset, everyone, record=record)
