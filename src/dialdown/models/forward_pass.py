"""How a forward pass is asked for, so that torch does it without detours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
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


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Gradients are taken inside the context, whatever the caller does, but by no weight, or the
    graph would keep what only theirs need.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
