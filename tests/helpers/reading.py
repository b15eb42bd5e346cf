"""A text, and what a model says of it by one forward pass in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch

from dialdown.models import LM

TEXT = "the cat sat on the mat\n\nand what then? nothing much happened, said the zebra."


def naive_log_probs(lm: LM, ids: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits = (
            copy.deepcopy(lm.model)
            .double()(input_ids=torch.tensor([[*ids]]), use_cache=False)
            .logits[0]
        )
    return torch.log_softmax(logits.double(), -1)


def naive_nll(lm: LM, ids: Sequence[int]) -> float:
    log_probs = naive_log_probs(lm, ids)
    return -float(
        np.mean([float(log_probs[place, ids[place + 1]]) for place in range(len(ids) - 1)])
    )
