"""The arithmetic of an intervention: as a hook on activations, and in the weight and bias of the
linear layer that reads them (METHOD §4, §7).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import DialdownError
from ..models.hooks import InputHook, Positions, being_changed, edited_at
from ..models.lm import LM
from ..models.projection import Projection

ROWS = 128  # of a weight that are held in float64 at a time


def affine(m: Tensor, gain: NDArray[np.float64], offset: NDArray[np.float64]) -> Tensor:
    """gain * m + offset, both (channels,), in the dtype of m, and computed in float32 or more: in
    16 bits a gain near 1 has two digits.
    """
    factors, terms = on_device(m, gain, offset)
    return scaled_and_moved(m, factors, terms).to(m)


def scaled_and_moved(m: Tensor, factors: Tensor, terms: Tensor) -> Tensor:
    """factors * m + terms, in their dtype."""
    return torch.addcmul(terms, m.to(factors.dtype), factors)


def on_device(like: Tensor, *arrays: NDArray[np.float64]) -> list[Tensor]:
    """Arrays where a tensor is, in float32 where that has 16 bits."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return [torch.as_tensor(array).to(like.device, dtype) for array in arrays]


def affine_hook(
    lm: LM,
    gain: NDArray[np.float64],
    offset: NDArray[np.float64],
    layers: Sequence[int],
    positions: Positions,
) -> InputHook:
    """gain * m + offset on the activations of `layers`; gain and offset are (L, F).

    In 16 bits a gain near 1 has two digits, so it is computed in float32 and rounded once.
    """
    numbers = {
        index: on_device(lm.view.layers[index].columns, gain[index], offset[index])
        for index in layers
    }

    def act(index: int, m: Tensor) -> Tensor:
        factors, terms = numbers[index]
        return edited_at(positions, m, scaled_and_moved(m, factors, terms))

    return act


def steering_hook(vector: NDArray[np.float64], steered: list[bool]) -> Callable[[Tensor], Tensor]:
    """x + vector on the final-layer residual, noting in `steered[0]` that it ran."""
    moved = torch.as_tensor(vector)

    def act(residual: Tensor) -> Tensor:
        steered[0] = True
        return residual + moved.to(residual)

    return act


@dataclass(frozen=True, eq=False)
class Fold:
    """What an edit makes of the weight (d, inputs) and the bias (d,) of one linear layer, or norm
    (METHOD §7).

        W <- diag(g) (W diag(gain) + v^T u)      b <- g (b + W offset) + o + residual

    Attributes:
        projection: the layer.
        gain, offset: (inputs,) float64, what each input is multiplied by, and what is then added;
            None where nothing is.
        residual: (d,) float64, what steering adds at the last layer, or None.
        rank_one: u (k, inputs) and v (k, d), float64, or None.
        output: g and o, (d,) float64, what each output is multiplied by, and what is then added;
            None where nothing is.
        less: what is missing from each weight as it is stored: 1 in norms of Gemma 2 and 3, and of
            Nemotron.
    """

    projection: Projection
    gain: NDArray[np.float64] | None = None
    offset: NDArray[np.float64] | None = None
    residual: NDArray[np.float64] | None = None
    rank_one: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    output: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    less: float = 0.0

    @property
    def changes(self) -> bool:
        """Whether the layer becomes another."""
        given = (self.gain, self.offset, self.residual, self.rank_one, self.output)
        return any(numbers is not None for numbers in given)

    @property
    def needs_bias(self) -> bool:
        """Whether it is written to the layer's bias."""
        scaled = self.output is not None and self.projection.bias is not None
        return scaled or self.offset is not None or self.residual is not None

    @property
    def rounded(self) -> NDArray[np.bool_]:
        """Which weights become numbers that their dtype may not hold, (1 or d, inputs)."""
        gain, rows = self._factors
        exact = np.isin(gain, (0, 1)) & np.isin(rows, (0, 1))[:, None]
        if self.rank_one is not None:
            exact &= (self.rank_one[0] == 0).all(0)
        return np.asarray(~exact)

    @property
    def reach(self) -> NDArray[np.float64]:
        """What a weight's error is multiplied by on its way to the output, (1 or d, inputs); 1
        where that is 0.
        """
        gain, _ = self._factors
        return np.where(gain == 0, 1, gain) * self.reach_of_bias[:, None]

    @property
    def reach_of_bias(self) -> NDArray[np.float64]:
        """The same of a bias's error, (1 or d,)."""
        _, rows = self._factors
        return np.where(rows == 0, 1, rows)

    @property
    def _factors(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of each input, (inputs,), and of each output, (1 or d,)."""
        gain = np.ones(self.projection.columns.shape[1]) if self.gain is None else self.gain
        return gain, np.ones(1) if self.output is None else self.output[0]

    def folded(self, columns: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What columns and bias become, as new tensors of their dtypes.

        Computed in float64 a block of rows at a time, so that the memory it takes is little more
        than the result, and rounded once.
        """
        none = (None, None)
        given = (self.gain, self.offset, self.residual, *(self.rank_one or none))
        gain, offset, residual, u, v, factors, terms = (
            None if numbers is None else torch.as_tensor(numbers, device=columns.device)
            for numbers in (*given, *(self.output or none))
        )
        written = torch.empty_like(columns)
        moved = None if bias is None else bias.detach().to(torch.float64, copy=True)
        for start in range(0, len(columns), ROWS):
            rows = slice(start, start + ROWS)
            wide = columns[rows].double()
            scaled = wide if gain is None else wide * gain
            if u is not None and v is not None:
                scaled = scaled + v[:, rows].T @ u
            if factors is not None:
                scaled = (scaled + self.less) * factors[rows, None] - self.less
            written[rows] = scaled.to(columns)
            if moved is not None and offset is not None:
                moved[rows] += wide @ offset
        if moved is not None and factors is not None and terms is not None:
            moved = moved * factors + terms
        if moved is not None and residual is not None:
            moved += residual
        return written, None if bias is None or moved is None else moved.to(bias)

    def write(self) -> None:
        """Make the layer's own weights so."""
        bias = self.projection.bias
        columns, moved = self.folded(self.projection.columns, bias)
        with torch.no_grad():
            self.projection.columns.copy_(columns)
            if bias is not None and moved is not None:
                bias.copy_(moved)


@contextmanager
def restored(folds: Sequence[Fold]) -> Iterator[None]:
    """Leave the layers of `folds` bit-identical afterwards; inside, those that need a bias and have
    none get one of zeros.
    """
    layers = [fold.projection for fold in folds]
    kept = [
        (layer.columns.clone(), None if layer.bias is None else layer.bias.clone())
        for layer in layers
    ]
    try:
        for fold, layer in zip(folds, layers, strict=True):
            if layer.bias is None and fold.offset is not None:
                zeros = torch.zeros_like(layer.columns[:, 0])
                layer.linear.register_parameter("bias", nn.Parameter(zeros, requires_grad=False))
        yield
    finally:
        with torch.no_grad():
            for layer, (columns, bias) in zip(layers, kept, strict=True):
                layer.columns.copy_(columns)
                if layer.bias is None:
                    continue
                if bias is None:
                    layer.linear.register_parameter("bias", None)
                else:
                    layer.bias.copy_(bias)


def check_can_fold(lm: LM, name: str, folds: Sequence[Fold]) -> None:
    """Refuse to fold the edit `name` into a model that an intervention acts on, or where it changes
    shared weights (DialdownError).
    """
    if being_changed(lm):
        raise DialdownError(
            f"{name} cannot be folded while another intervention acts on {lm.name}, whose hooks "
            "the copy would keep: fold outside of `applied`."
        )
    if shared := shared_projections(lm, folds):
        raise DialdownError(
            f"The weight of {shared[0]} in {lm.name} is shared with another module, which an edit "
            "would change too: untie the weights first, or apply the edit while generating."
        )


def shared_projections(lm: LM, folds: Sequence[Fold]) -> list[str]:
    """Layers to fold into that are one matrix with another module: folding would edit it twice, or
    change what else it is used for.
    """
    parameters = lm.model.named_parameters(remove_duplicate=False)
    uses = Counter(_storage(parameter) for _, parameter in parameters)
    layers = [fold.projection for fold in folds]
    return [layer.path for layer in layers if uses[_storage(layer.linear.weight)] > 1]


def _storage(parameter: Tensor) -> int:
    """Equal for two names of one matrix; on the meta device, where nothing is stored, for two names
    of one parameter.
    """
    return id(parameter) if parameter.is_meta else parameter.data_ptr()
