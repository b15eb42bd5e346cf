"""How a forward pass is asked for, so that torch does it without detours."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

_WITHOUT_PLANS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


def for_any_length() -> AbstractContextManager[None]:
    """PyTorch's attention without cuDNN's, which makes a plan for each length that it has not met:
    about a tenth of a second on an H100, and decoding meets a new length at every token.
    """
    context: AbstractContextManager[None] = sdpa_kernel([*_WITHOUT_PLANS])
    return context


def last_positions(count: int, device: torch.device) -> Tensor:
    """The last positions of a text, (count,), for a model's `logits_to_keep`.

    Given the number, transformers takes a slice, which is not contiguous, and torch multiplies it
    by a frozen head row by row: fourteen times slower for 140 prompts on one core. And Gemma 4
    then computes its last layers at those positions alone, where hooks miss the others.
    """
    return torch.arange(-count, 0, device=device)
