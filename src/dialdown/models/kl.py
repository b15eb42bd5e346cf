"""The Kullback–Leibler divergence of a model's predictions, which is measured and trained on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def kl_divergence(p: Tensor, q: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """KL(p ‖ q) in nats at every position, from log-probabilities (..., V), summed in `dtype`."""
    terms = F.kl_div(q, p, log_target=True, reduction="none")
    # A token that p rules out counts nothing, also where q rules it out too (-inf - -inf).
    return terms.masked_fill(p == -torch.inf, 0).sum(-1, dtype=dtype)
