"""A module with a weight and perhaps a bias: what an edit acts on, and folds into."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import DialdownError
from .protocol import Protocol


@dataclass(frozen=True)
class Projection:
    """A linear layer that writes to the residual stream: an MLP's down projection, whose inputs are
    the neurons, or the output projection of attention, whose inputs are the channels of its heads.
    Edits of outputs act on any linear layer, and on norms.

    Attributes:
        path: dotted name of the layer inside the model.
        linear: the layer itself (`nn.Linear`, GPT-2's `Conv1D`, or a norm).
        post_norm: the norm between its output and the residual stream (Gemma-2/3), or None.
        multiplier: what its output, after that norm, is multiplied by on its way to the final
            residual stream (Granite, MiniCPM3, HyperCLOVA X, Gemma 4).
    """

    path: str
    linear: nn.Linear | Conv1D | nn.LayerNorm
    post_norm: nn.Module | None = None
    multiplier: float = 1.0

    @classmethod
    def of(
        cls,
        path: str,
        linear: nn.Module,
        after: Iterable[nn.Module],
        what: str,
        multiplier: float = 1.0,
    ) -> Projection:
        """A layer with the first norm `after` it that is one.

        Raises:
            DialdownError: it is not a plain matrix; `what` says which layer of which model.
        """
        if not isinstance(linear, nn.Linear | Conv1D) or not linear.weight.is_floating_point():
            raise DialdownError(
                f"{what} is a {type(linear).__name__}, not a plain matrix: load the model "
                "unquantised in float32, bfloat16 or float16."
            )
        norm = next((norm for norm in after if not isinstance(norm, nn.Identity)), None)
        return cls(path, linear, norm, multiplier)

    @property
    def decoder_layer(self) -> str:
        """Dotted name of the layer that it is in: the path up to its number."""
        parts = self.path.split(".")
        number = next(place for place, part in enumerate(parts) if part.isdecimal())
        return ".".join(parts[: number + 1])

    @property
    def columns(self) -> Tensor:
        """The weight as (d, inputs), one value vector per column; of a norm, which multiplies each
        channel by a number, (d, 1). Shares memory.
        """
        weight = self.linear.weight.data
        if weight.dim() == 1:
            return weight.unsqueeze(1)
        return weight.T if isinstance(self.linear, Conv1D) else weight

    @property
    def bias(self) -> Tensor | None:
        """The bias (d,), or None where there is none."""
        return getattr(self.linear, "bias", None)

    def value_vectors(self, protocol: Protocol = "strict") -> Tensor:
        """What each input writes, (inputs, d) float32, before the multiplier; in `strict` with a
        norm's weight (METHOD §1).
        """
        vectors = self.columns.T.detach().float()
        gain = self.post_norm_gain()
        return vectors if protocol == "paper" or gain is None else vectors * gain

    def post_norm_gain(self) -> Tensor | None:
        """The (d,) effective scale of the norm after it, or None where there is none."""
        if self.post_norm is None:
            return None
        # Some families store the weight and some store weight - 1; what an RMS norm makes of
        # all-ones is the effective one.
        with torch.no_grad():
            ones = torch.ones(self.columns.shape[0], device=self.columns.device)
            gain: Tensor = self.post_norm(ones).float()
            return gain
