"""Refuse what was made for a model of another shape, and numbers that overflowed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import DialdownError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from .lm import LM


def check_neurons(lm: LM, shape: tuple[int, ...], what: str, instead: str) -> None:
    """Refuse another shape than (layers, neurons); `what` has its verb ("The means have")."""
    layers, neurons = lm.view.shape
    if shape != (layers, neurons):
        raise DialdownError(
            f"{what} shape {shape} and {lm.name} has {layers} layers of {neurons} neurons: "
            f"{instead}."
        )


def check_width(lm: LM, width: int, what: str, instead: str) -> None:
    """Refuse another width than that of the residual stream; see `check_neurons`."""
    if width != lm.view.d_model:
        raise DialdownError(
            f"{what} {width} dimensions and the residual stream of {lm.name} {lm.view.d_model}: "
            f"{instead}."
        )


def check_finite(
    lm: LM, values: Tensor | NDArray[Any], what: str = "predictions or gradients"
) -> None:
    """Refuse numbers of a model that overflowed (DialdownError)."""
    # Tables and edits are read without it.
    import torch

    if not torch.as_tensor(values).isfinite().all():
        raise DialdownError(
            f"The {what} of {lm.name} are not finite: load it in float32 or bfloat16."
        )
