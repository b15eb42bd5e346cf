"""Attention on a GPU over texts whose lengths keep changing."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch.nn.attention import SDPBackend, sdpa_kernel

_WITHOUT_PLANS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


def for_any_length() -> AbstractContextManager[None]:
    """PyTorch's attention without cuDNN's, which makes a plan for each length that it has not met:
    about a tenth of a second on an H100, and decoding meets a new length at every token.
    """
    context: AbstractContextManager[None] = sdpa_kernel([*_WITHOUT_PLANS])
    return context
