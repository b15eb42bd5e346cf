"""ProFS: what the MLPs of the upper layers write along a few directions that tell rejected texts
from preferred ones is taken out (METHOD §10; Uppaal et al., ICLR 2025).

    W <- (I - V V^T) W

V, (d, k), are the first right singular vectors of the differences between the mean residual streams
of the two texts of each pair, from which the first right singular vector of the preferred texts'
own was taken: what all texts share. As `ablation`, with k directions and from pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import DialdownError
from ..interventions.explain import as_rank_one
from ..interventions.intervention import Intervention
from ..models.decoding import batches
from ..models.fits import check_finite
from ..models.lm import LM
from ..models.tokens import encode_texts
from ..progress import progress
from .ablation import residuals, taken_out
from .labelled import BATCH


def profs(
    lm: LM,
    preferred: Sequence[str],
    rejected: Sequence[str],
    *,
    rank: int = 2,
    first_layer: int | None = None,
    max_tokens: int = 128,
) -> Intervention:
    """Let the MLP of each layer from `first_layer` on write nothing along its `rank` directions, at
    every position; what its bias writes stays. Each text counts by the mean over its tokens but
    attention sinks. Strength 1 takes all of it out.

    As published, for which pairs are continuations without their prompts, the means are over all
    tokens, and padding.

    Args:
        lm: the model.
        preferred, rejected: the two texts of each pair.
        rank: k; published are 2 for GPT-2 medium and 10 for models of 7B.
        first_layer: counted from 0; by default after five twelfths of the layers, as published for
            GPT-2 medium.
        max_tokens: of each text.

    Raises:
        DialdownError: the two are not as many, or fewer than `rank`; no such layer; a text has no
            tokens or exceeds the context; an activation is not a finite number; the texts of each
            pair are the same.
    """
    first = 5 * lm.view.n_layers // 12 if first_layer is None else first_layer
    _check(lm, len(preferred), len(rejected), rank, first)
    ids = encode_texts(lm, [*preferred, *rejected], max_tokens)
    means = np.empty((lm.view.n_layers, len(ids), lm.view.d_model))
    done = 0
    for batch in batches(lm, ids, BATCH):
        means[:, list(batch.rows)] = residuals(lm, batch)
        done += len(batch.rows)
        progress("reading pairs", done, len(ids))
    directions = np.zeros((rank, lm.view.n_layers, lm.view.d_model))
    for layer in range(first, lm.view.n_layers):
        check_finite(lm, means[layer], f"activations in layer {layer}")
        preferred_means, rejected_means = np.split(means[layer], 2)
        directions[:, layer] = _directions(preferred_means, rejected_means, rank)
    record = {"base": lm.describe(), "pairs": len(preferred), "max_tokens": max_tokens}
    return as_rank_one(
        "profs", taken_out(lm, directions), {**record, "rank": rank, "first_layer": first}
    )


def _directions(
    preferred: NDArray[np.float64], rejected: NDArray[np.float64], rank: int
) -> NDArray[np.float64]:
    """(rank, d) orthonormal, from the means of the texts of n pairs, (n, d) each."""
    shared = np.linalg.svd(preferred, full_matrices=False).Vh[0]
    difference = preferred - rejected
    difference = difference - np.outer(difference @ shared, shared)
    if not difference.any():
        raise DialdownError(
            "The two texts of each pair have the same mean residual streams, so no direction tells "
            "them apart: pass pairs that differ."
        )
    return np.asarray(np.linalg.svd(difference, full_matrices=False).Vh[:rank])


def _check(lm: LM, preferred: int, rejected: int, rank: int, first: int) -> None:
    if preferred != rejected:
        raise DialdownError(
            f"There are {preferred} preferred texts and {rejected} rejected ones, which make no "
            "pairs: pass one of each per pair."
        )
    if not 1 <= rank <= min(preferred, lm.view.d_model - 1):
        raise DialdownError(
            f"A rank of {rank} cannot be found from {preferred} pairs: pass 1 to "
            f"{min(preferred, lm.view.d_model - 1)}, or more pairs."
        )
    if not 0 <= first < lm.view.n_layers:
        raise DialdownError(
            f"{lm.name} has no layer {first} to begin at: pass 0 to {lm.view.n_layers - 1}."
        )
