"""Contrastive activation addition: steering by the difference of two means (METHOD §10)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import DialdownError
from ..interventions.intervention import Intervention
from ..interventions.paper import steer
from ..models.lm import LM
from ..neurons.directions import Direction
from ..neurons.probe import check_labels, probe_features
from .labelled import Labels


def caa(lm: LM, texts: Sequence[str], labels: Labels, *, max_tokens: int = 128) -> Intervention:
    """Subtract the difference between the mean residual streams of texts with and without the
    concept, where `steer` does: after the last layer, at every position. Each text counts by the
    mean over its tokens, and strength 1 is the whole difference.

    Raises:
        DialdownError: see `auroc`, or the two means are the same.
    """
    check_labels(texts, labels)
    features = probe_features(lm, texts, protocols=("strict",), max_tokens=max_tokens)["strict"]
    toxic = np.asarray(labels) == 1
    vector = features[toxic].mean(0) - features[~toxic].mean(0)
    if not vector.any():
        raise DialdownError(
            "The texts of both classes have the same mean residual stream, so no direction tells "
            "them apart: pass texts that differ."
        )
    record = {**lm.describe(), "texts": len(texts), "with_concept": int(toxic.sum())}
    return steer(Direction("difference", vector, "residual", record), 1.0, name="caa")
