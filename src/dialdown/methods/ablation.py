"""Directional ablation at the MLPs: what they write along the direction that tells toxic texts from
others is taken out (METHOD §10; Arditi et al., 2024).

    W <- W - r r^T W

That reads each layer's neurons by W^T r and writes along -r: one direction per layer, a `rank_one`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DialdownError
from ..interventions.explain import as_rank_one
from ..interventions.intervention import Intervention
from ..interventions.rank_one import RankOne
from ..models.decoding import Batch, batches, read
from ..models.fits import check_finite
from ..models.hooks import stream_hooks
from ..models.lm import LM
from ..progress import progress
from .labelled import BATCH, Labels, encode_labelled, mean_without_sinks


def ablation(
    lm: LM, texts: Sequence[str], labels: Labels, *, max_tokens: int = 128
) -> Intervention:
    """Let the MLP of each layer write nothing along r, the unit difference between the classes'
    mean residual streams after that layer, at every position; what its bias writes stays. Each text
    counts by the mean over its tokens but attention sinks. Strength 1 takes all of it out, 2 turns
    it round.

    As published, r is of one layer, found by a search, and neither embeddings nor attention write
    along it.

    Args:
        lm, texts, labels, max_tokens: see `auroc`.

    Raises:
        DialdownError: see `encode_labelled`; an activation is not a finite number, or the means of
            the two classes are the same.
    """
    ids, toxic, record = encode_labelled(lm, texts, labels, max_tokens)
    # What a text counts in the difference of the two means.
    counts = np.where(toxic, 1 / toxic.sum(), -1 / (~toxic).sum())
    difference = np.zeros((lm.view.n_layers, lm.view.d_model))
    done = 0
    for batch in batches(lm, ids, BATCH):
        difference += np.einsum("ltd,t->ld", residuals(lm, batch), counts[list(batch.rows)])
        done += len(batch.rows)
        progress("reading labelled texts", done, len(ids))
    for layer, of_layer in enumerate(difference):
        check_finite(lm, of_layer, f"activations in layer {layer}")
    if not difference.any():
        raise DialdownError(
            "The texts of both classes have the same mean residual streams, so no direction tells "
            "them apart: pass texts that differ."
        )
    return as_rank_one("ablation", taken_out(lm, difference[None]), record)


def residuals(lm: LM, batch: Batch) -> NDArray[np.float64]:
    """(L, texts, d): the mean over each text's own tokens of the residual stream after each
    layer.
    """
    means = np.empty((lm.view.n_layers, len(batch.rows), lm.view.d_model))

    def keep(layer: int, x: torch.Tensor) -> None:
        tokens = batch.mask[..., None].to(x.device) == 1
        means[layer] = mean_without_sinks(x, tokens).cpu().numpy()

    with torch.inference_mode(), stream_hooks(lm, keep):
        read(lm, batch)
    return means


def taken_out(lm: LM, directions: NDArray[np.float64]) -> RankOne:
    """What lets no MLP write along any of `directions`, (k, L, d) of the residual stream; a layer
    whose are all zero writes what it did.
    """
    reads = np.zeros((len(directions), *lm.view.shape))
    writes = np.zeros_like(directions)
    for index, layer in enumerate(lm.view.layers):
        span = directions[:, index].T
        if not span.any():
            continue
        if (gain := layer.post_norm_gain()) is not None:
            # A norm after the MLP multiplies each channel: the directions are met where these are.
            span = span * gain.double().cpu().numpy()[:, None]
        basis = np.linalg.qr(span).Q.T
        reads[:, index] = basis @ layer.columns.double().cpu().numpy()
        writes[:, index] = -basis
    return RankOne(reads, writes)
