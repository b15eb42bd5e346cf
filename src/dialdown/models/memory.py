"""What a model takes of memory, and batches that fit into it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ..errors import memory_is_short
from ..workers import return_free_memory
from .lm import LM

T = TypeVar("T")
# Texts that a GPU decodes at once: from some hundreds on it computes all the while.
MOST = 512
# The share of a GPU's free memory that a batch is planned for; kernels and fragments take the rest.
SHARE = 0.7


@dataclass(frozen=True)
class Auto:
    """A batch size that is found: on a GPU as many as its memory holds, halved where memory runs
    out all the same.

    Attributes:
        on_cpu: how many on a CPU, which is no faster with more.
    """

    on_cpu: int


AUTO = Auto(64)
BatchSize = int | Auto


class SmallerBatchWarning(UserWarning):
    """Memory ran out, and what was at work was done again with fewer texts at once."""


@dataclass(frozen=True)
class Shape:
    """A model's sizes.

    Attributes:
        parameters: its weights, shared ones once.
        itemsize: bytes of one.
        layers, d_model, neurons, vocabulary: as their names say; neurons of one layer.
        key_values: numbers that attention keeps of a token in all layers.
        around: tokens that its chat template puts around a prompt.
    """

    parameters: int
    itemsize: int
    layers: int
    d_model: int
    neurons: int
    vocabulary: int
    key_values: int
    around: int = 0

    @classmethod
    def of(cls, lm: LM, itemsize: int | None = None) -> Shape:
        """The sizes of a model; `itemsize` is that of its dtype where none is given."""
        config = lm.model.config.get_text_config()
        # Layers of Gemma 4 differ.
        layers = getattr(config, "per_layer_config", None) or [config] * lm.view.n_layers
        return cls(
            parameters=sum(weight.numel() for weight in lm.model.parameters()),
            itemsize=itemsize or lm.model.dtype.itemsize,
            layers=lm.view.n_layers,
            d_model=lm.view.d_model,
            neurons=lm.view.n_neurons,
            vocabulary=config.vocab_size,
            key_values=2 * sum(_kept_width(layer, lm.view.d_model) for layer in layers),
            around=lm.turns.around if lm.tokenizer and lm.turns else 0,
        )

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return self.parameters * self.itemsize

    def kept(self, tokens: int) -> int:
        """Bytes of the keys and values of some tokens."""
        return tokens * self.key_values * self.itemsize

    def read(self, tokens: int) -> int:
        """Bytes of what a layer holds at once while it reads some tokens."""
        return tokens * (3 * self.neurons + 8 * self.d_model) * self.itemsize

    def decoded(self, prompt: int, new: int) -> int:
        """Bytes of a text while it is decoded: keys and values, a layer that reads the prompt, and
        the last logits, in the model's dtype, in float32, and sorted or compared.
        """
        logits = self.vocabulary * (self.itemsize + 8)
        return self.kept(prompt + new) + self.read(prompt) + logits

    def graph(self, tokens: int) -> int:
        """Bytes of the activations that a backward pass needs of some tokens."""
        return tokens * self.layers * (3 * self.neurons + 16 * self.d_model) * self.itemsize


def free_bytes(device: torch.device) -> int:
    """What is free on a GPU, with what torch keeps there for itself."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def fitting(free: int, each: int) -> int:
    """The largest power of two of texts up to `MOST` that fit into a share of the free bytes, so
    that little else on the device changes nothing; at least one.
    """
    texts = max(1, min(MOST, int(SHARE * free) // each))
    return 1 << texts.bit_length() - 1


def halving(size: int, work: Callable[[int], T], *, most: int, allowed: bool = True) -> T:
    """What `work` gives for a batch size, which is halved, and the work done from its start, as
    often as memory runs out.

    Args:
        size: the first batch size.
        work: does all of it, and leaves nothing behind where it fails.
        most: how many texts there are; a batch of more is one of these.
        allowed: whether the size may be changed.
    """
    while True:
        try:
            return work(size)
        except (MemoryError, RuntimeError) as error:
            size, failed = min(size, most) // 2, min(size, most)
            if not (allowed and size and memory_is_short(error)):
                raise
        # Outside of the handler, which keeps alive what the failed work had in memory.
        return_free_memory()
        warnings.warn(
            f"{failed:,} texts at once did not fit into memory, so {size:,} at once were done",
            SmallerBatchWarning,
            stacklevel=3,
        )


def _kept_width(config: Any, d_model: int) -> int:
    """How many numbers of keys a layer keeps of a token, and of values."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or d_model // config.num_attention_heads
    return int(heads * width)
