"""Refuse what was made for a model of another shape, numbers that overflowed, counts below 1."""

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


def check_counts(**counts: int) -> None:
    """Refuse a number of things below 1, by the name of its argument (DialdownError)."""
    for name, count in counts.items():
        if count < 1:
            raise DialdownError(f"{name}={count} leaves nothing to do: pass 1 or more.")


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
