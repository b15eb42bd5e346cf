"""The arithmetic of an intervention: as a hook on activations, and in a down projection's columns
and bias (METHOD §4, §7).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import DialdownError
from ..models.hooks import NeuronHook, Positions, being_changed
from ..models.lm import LM
from ..models.mlp import MLPLayer

ROWS = 128  # of a down projection that are held in float64 at a time


def affine_hook(
    lm: LM,
    gain: NDArray[np.float64],
    offset: NDArray[np.float64],
    layers: Sequence[int],
    positions: Positions,
) -> NeuronHook:
    """gain * m + offset on the activations of `layers`; gain and offset are (L, F).

    In 16 bits a gain near 1 has two digits, so it is computed in float32 and rounded once.
    """
    numbers = {}
    for index in layers:
        columns = lm.view.layers[index].columns
        dtype = torch.promote_types(columns.dtype, torch.float32)
        numbers[index] = [
            torch.as_tensor(array[index]).to(columns.device, dtype) for array in (gain, offset)
        ]

    def act(index: int, m: Tensor) -> Tensor:
        factors, terms = numbers[index]
        if positions == "all":
            return torch.addcmul(terms, m.to(factors.dtype), factors).to(m)
        where = -1 if positions == "last" else 0
        edited = m.clone()
        edited[:, where] = m[:, where].to(factors.dtype) * factors + terms
        return edited

    return act


def steering_hook(vector: NDArray[np.float64], steered: list[bool]) -> Callable[[Tensor], Tensor]:
    """x + vector on the final-layer residual, noting in `steered` that it ran."""
    moved = torch.as_tensor(vector)

    def act(residual: Tensor) -> Tensor:
        steered[:] = [True]
        return residual + moved.to(residual)

    return act


def fold_columns(
    columns: Tensor,
    bias: Tensor | None,
    gain: NDArray[np.float64],
    offset: NDArray[np.float64],
    residual: NDArray[np.float64] | None,
    rank_one: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """New columns (d, F), times the gains (F,) plus v u^T where `rank_one` is u (F,) and v (d,);
    and a new bias (d,), plus what the offsets (F,) and the `residual` vector (d,) add to it. Both
    are of the dtypes given.

    Computed in float64 a block of rows at a time, so that the memory it takes is little more than
    the result, and rounded once.
    """
    factors = torch.as_tensor(gain, device=columns.device)
    terms = torch.as_tensor(offset, device=columns.device) if offset.any() else None
    if rank_one is not None:
        u, v = (torch.as_tensor(vector, device=columns.device) for vector in rank_one)
    written = torch.empty_like(columns)
    moved = None if bias is None else bias.detach().to(torch.float64, copy=True)
    for start in range(0, len(columns), ROWS):
        rows = slice(start, start + ROWS)
        wide = columns[rows].double()
        scaled = wide * factors
        if rank_one is not None:
            scaled += torch.outer(v[rows], u)
        written[rows] = scaled.to(columns)
        if moved is not None and terms is not None:
            moved[rows] += wide @ terms
    if moved is not None and residual is not None:
        moved += torch.as_tensor(residual, device=moved.device)
    return written, None if bias is None or moved is None else moved.to(bias)


@contextmanager
def restored(layers: Sequence[MLPLayer], biased: Sequence[bool]) -> Iterator[None]:
    """Leave the down projections of `layers` bit-identical afterwards; inside, those that need a
    bias and have none get one of zeros.
    """
    kept = [
        (layer.columns.clone(), None if layer.down.bias is None else layer.down.bias.clone())
        for layer in layers
    ]
    try:
        for layer, needed in zip(layers, biased, strict=True):
            if layer.down.bias is None and needed:
                zeros = torch.zeros_like(layer.columns[:, 0])
                layer.down.bias = nn.Parameter(zeros, requires_grad=False)
        yield
    finally:
        with torch.no_grad():
            for layer, (columns, bias) in zip(layers, kept, strict=True):
                layer.columns.copy_(columns)
                if bias is None:
                    layer.down.bias = None
                else:
                    layer.down.bias.copy_(bias)


def check_can_fold(lm: LM, name: str) -> None:
    """Refuse to fold the edit `name` into a model that an intervention acts on, or whose down
    projections are shared (DialdownError).
    """
    if being_changed(lm):
        raise DialdownError(
            f"{name} cannot be folded while another intervention acts on {lm.name}, whose hooks "
            "the copy would keep: fold outside of `applied`."
        )
    if shared := shared_projections(lm):
        raise DialdownError(
            f"The weight of {shared[0]} in {lm.name} is shared with another module, which an edit "
            "would change too: untie the weights first, or apply the edit while generating."
        )


def shared_projections(lm: LM) -> list[str]:
    """Down projections that are one matrix with another module: folding would edit it twice, or
    change what else it is used for.
    """
    parameters = lm.model.named_parameters(remove_duplicate=False)
    uses = Counter(_storage(parameter) for _, parameter in parameters)
    return [layer.path for layer in lm.view.layers if uses[_storage(layer.down.weight)] > 1]


def _storage(parameter: Tensor) -> int:
    """Equal for two names of one matrix; on the meta device, where nothing is stored, for two names
    of one parameter.
    """
    return id(parameter) if parameter.is_meta else parameter.data_ptr()
