"""Mean-AcT and Linear-AcT: move the activations of toxic texts to where those of other texts are
(METHOD §10; Rodriguez et al., 2024).

With a and b the mean activations of n toxic and n other texts, sorted, a neuron's map is the shift
by mean b - mean a, or the line that fits b to a best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..interventions.folding import affine
from ..interventions.intervention import Intervention
from ..models.decoding import batches, read
from ..models.fits import check_finite
from ..models.lm import LM
from ..models.sites import layer_norms
from ..progress import progress
from .labelled import Labels, Pool, encode_labelled, mean, mean_without_sinks, pooled
from .places import MethodSite, places_of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Fit:
    """What it is called, the kind of its edits of neurons, its map from (n, channels) means of
    toxic and of other texts to gains and offsets, (channels,) each, and what the means are over.
    """

    name: str
    kind: Literal["shift", "affine"]
    map: Callable[[Floats, Floats], tuple[Floats, Floats]]
    pool: Pool


def mean_act(
    lm: LM,
    texts: Sequence[str],
    labels: Labels,
    *,
    site: MethodSite = "neurons",
    sequential: bool = True,
    max_tokens: int = 128,
) -> Intervention:
    """Mean-AcT: each activation moves by the difference of the classes' means over texts, attention
    sinks left out, an intervention of kind `shift`. Arguments and errors are those of `linear_act`.
    """
    fit = _Fit("mean_act", "shift", _mean_shift, mean_without_sinks)
    return _maps(lm, texts, labels, fit, site, sequential, max_tokens)


def linear_act(
    lm: LM,
    texts: Sequence[str],
    labels: Labels,
    *,
    site: MethodSite = "neurons",
    sequential: bool = True,
    max_tokens: int = 128,
) -> Intervention:
    """Linear-AcT: each activation m becomes gain * m + offset, the least-squares line from the
    sorted means over tokens of toxic texts to those of other texts, an intervention of kind
    `affine`. A neuron that does the same on every toxic text is shifted.

    Args:
        lm, texts, labels, max_tokens: see `auroc`; of either class the first n texts are
            used, n being the number of the smaller class.
        site: `neurons`, or `published`: the outputs of the norms after attention and MLP, or before
            them where the architecture has no others, by their means over all tokens; an
            intervention of kind `outputs`, which folds where those norms have a bias.
        sequential: fit the layers one after the other, each with the maps of earlier ones acting,
            as published. All texts then go through the model at once, so memory grows with their
            number times the longest: about 16 bytes for each token and neuron of a layer, in
            float32.

    Raises:
        DialdownError: see `encode_labelled`; no such site, or an activation is not a finite number.
    """
    # A line multiplies what attention sinks have, too, so they have a part in it.
    fit = _Fit("linear_act", "affine", _line, mean)
    return _maps(lm, texts, labels, fit, site, sequential, max_tokens)


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
    fit: _Fit,
    site: MethodSite,
    sequential: bool,
    max_tokens: int,
) -> Intervention:
    places = places_of(lm, site, layer_norms)
    encoded, toxic, record = encode_labelled(lm, texts, labels, max_tokens)
    n = int(min(toxic.sum(), (~toxic).sum()))
    ids = [encoded[row] for mask in (toxic, ~toxic) for row in np.flatnonzero(mask)[:n]]
    pool = fit.pool if places.neurons else mean
    maps: dict[str, tuple[Floats, Floats]] = {}

    if sequential:
        (batch,) = batches(lm, ids, len(ids))
        tokens, rows = batch.mask[..., None] == 1, list(batch.rows)

        def act(path: str, m: Tensor) -> Tensor:
            means = np.empty((len(ids), places.widths[path]))
            means[rows] = pool(m, tokens.to(m.device)).cpu().numpy()
            check_finite(lm, means, f"activations in {places.called(path)}")
            maps[path] = fit.map(means[:n], means[n:])
            progress("fitting maps", len(maps), len(places.widths))
            return affine(m, *maps[path])

        with torch.inference_mode(), places.hooks(act, [*places.widths]) as called:
            read(lm, batch)
            places.check_ran([*called.values()], [*places.widths])
    else:
        of_modules = pooled(places, ids, pool, [*places.widths])
        for path, means in zip(places.widths, of_modules, strict=True):
            maps[path] = fit.map(means[:n], means[n:])
    gain, offset = (np.concatenate([maps[path][part] for path in places.widths]) for part in (0, 1))
    edit = places.edit(fit.name, fit.kind, gain, offset, {**record, "sequential": sequential})
    return replace(edit, selected=np.ones(edit.gain.shape, dtype=bool))
