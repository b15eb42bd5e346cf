"""Mean-AcT and Linear-AcT: move the activations of toxic texts to where those of other texts are
(METHOD §10; Rodriguez et al., 2024).

With a and b the mean activations of n toxic and n other texts, sorted, a neuron's map is the shift
by mean b - mean a, or the line that fits b to a best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..interventions.edit_file import Kind
from ..interventions.folding import affine_hook
from ..interventions.intervention import Intervention
from ..models.decoding import batches, read
from ..models.hooks import neuron_hooks
from ..models.lm import LM
from ..progress import Progress, with_bar
from .labelled import Labelled, Labels, check_finite, mean, pooled

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
    name: str = "mean_act",
    progress: Progress | None = None,
) -> Intervention:
    """Mean-AcT: each activation moves by the difference of the classes' means over texts.

    Args, Raises: see `linear_act`.

    Returns:
        An intervention of kind `shift`.
    """
    data = Labelled.of(lm, texts, labels, max_tokens)
    gain, offset = _maps(lm, data, _mean_shift, sequential, progress)
    return _intervention(name, "shift", gain, offset, data, sequential)


@with_bar
def linear_act(
    lm: LM,
    texts: Sequence[str],
    labels: Labels,
    *,
    sequential: bool = True,
    max_tokens: int = 128,
    name: str = "linear_act",
    progress: Progress | None = None,
) -> Intervention:
    """Linear-AcT: each activation m becomes gain * m + offset, the least-squares line from the
    sorted means over tokens of toxic texts to those of other texts.

    Args:
        lm: the model.
        texts: the labelled texts; of either class the first n are used, n being the number of the
            smaller class.
        labels: 1 where a text has the concept, else 0.
        sequential: fit the layers one after the other, each with the maps of earlier ones acting,
            as published. All texts then go through the model at once, so memory grows with their
            number times the longest: about 16 bytes for each token and neuron of a layer, in
            float32.
        max_tokens: texts are cut here.
        name: the name its results carry.
        progress: called after each layer, or batch of texts.

    Returns:
        An intervention of kind `affine`. A neuron that does the same on every toxic text is
        shifted.

    Raises:
        DialdownError: see `Labelled.of`, or an activation is not a finite number.
    """
    data = Labelled.of(lm, texts, labels, max_tokens)
    gain, offset = _maps(lm, data, _line, sequential, progress)
    return _intervention(name, "affine", gain, offset, data, sequential)


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
    lm: LM, data: Labelled, fit: Fit, sequential: bool, progress: Progress | None
) -> tuple[Floats, Floats]:
    """Gains and offsets, (L, F) each."""
    n = int(min(data.toxic.sum(), (~data.toxic).sum()))
    used = [np.flatnonzero(mask)[:n] for mask in (data.toxic, ~data.toxic)]
    ids = [data.ids[row] for rows in used for row in rows]
    gain = np.ones(lm.view.shape)
    offset = np.zeros_like(gain)

    def fit_layer(layer: int, means: Floats) -> None:
        gain[layer], offset[layer] = fit(means[:n], means[n:])

    def tell(done: int, total: int) -> None:
        if progress:
            progress("fitting maps", done, total)

    if not sequential:
        layers = range(lm.view.n_layers)
        for layer, means in enumerate(pooled(lm, ids, mean, layers, tell)):
            fit_layer(layer, means)
        return gain, offset
    (batch,) = batches(lm, ids, len(ids))
    own, rows = batch.mask[..., None] == 1, list(batch.rows)

    def act(layer: int, m: Tensor) -> Tensor | None:
        means = np.empty((len(ids), lm.view.n_neurons))
        means[rows] = mean(m, own.to(m.device)).cpu().numpy()
        check_finite(lm, layer, means)
        fit_layer(layer, means)
        tell(layer + 1, lm.view.n_layers)
        return affine_hook(lm, gain, offset, [layer], "all")(layer, m)

    with torch.inference_mode(), neuron_hooks(lm, act):
        read(lm, batch)
    return gain, offset


def _intervention(
    name: str, kind: Kind, gain: Floats, offset: Floats, data: Labelled, sequential: bool
) -> Intervention:
    everyone = np.ones(gain.shape, dtype=bool)
    record = {**data.record, "sequential": sequential}
    return Intervention(name, kind, gain, offset, everyone, record=record)
