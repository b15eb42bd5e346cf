"""One affine map per channel of what linear layers or norms write, where AurA and AcT are published
to act (METHOD §10).

    y <- g y + o

It folds into the rows of a linear layer's weight, or a norm's weight, and their biases.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import DialdownError
from ..models.hooks import Positions, edited_at, output_hooks
from ..models.lm import LM
from ..models.mlp import check_axes
from ..models.projection import Projection
from ..models.sites import is_linear, is_norm
from .folding import Fold, on_device, scaled_and_moved

Map = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Outputs:
    """What becomes of the outputs of some modules.

    Attributes:
        widths: how many channels each module writes, by its dotted name.
        gain, offset: (channels of all,) float64, g and o, one module's after the other's.
    """

    widths: dict[str, int]
    gain: NDArray[np.float64]
    offset: NDArray[np.float64]

    @property
    def maps(self) -> dict[str, Map]:
        """Gain and offset, (channels,) each, of every module that has others than 1 and 0."""
        ends = np.cumsum([*self.widths.values()])[:-1]
        parts = zip(np.split(self.gain, ends), np.split(self.offset, ends), strict=True)
        maps = zip(self.widths, parts, strict=True)
        return {path: (g, o) for path, (g, o) in maps if (g != 1).any() or o.any()}

    @property
    def moved(self) -> int:
        """How many channels become others."""
        return int(((self.gain != 1) | (self.offset != 0)).sum())

    def at(self, strength: float) -> Outputs:
        """The same, each output moved `strength` times as far."""
        gain = 1 + strength * (self.gain - 1)
        return replace(self, gain=gain, offset=strength * self.offset)

    def unheld_offset(self, lm: LM) -> str | None:
        """A module whose offset no bias of the architecture can hold, or None."""
        for path, (_, offset) in self.maps.items():
            if offset.any() and _layer(lm, path).bias is None:
                return path
        return None

    def check(self, lm: LM, name: str) -> None:
        """Refuse a model that lacks one of the modules, or where it has another width, for the edit
        `name` (DialdownError).
        """
        if not self.gain.size == self.offset.size == sum(self.widths.values()):
            raise DialdownError(
                f"{name} has {self.gain.size} gains and {self.offset.size} offsets for "
                f"{sum(self.widths.values())} outputs: pass one of each per output."
            )
        modules = dict(lm.model.named_modules())
        for path, width in self.widths.items():
            module = modules.get(path)
            known = is_linear(module) or is_norm(module)
            has = len(_layer(lm, path).columns) if known else None
            if has != width:
                existing = f"{has} outputs" if has else "no such linear layer or norm"
                raise DialdownError(
                    f"{name} maps {width} outputs of {path}, and {lm.name} has {existing}: fit it "
                    "on this model."
                )

    def check_foldable(self, lm: LM, name: str) -> None:
        """Refuse an architecture without a bias where one is needed (DialdownError)."""
        if (path := self.unheld_offset(lm)) is not None:
            raise DialdownError(
                f"{name} adds to the outputs of {path}, which has no bias in {lm.name} to hold "
                "that: apply it while generating, or use a method of gains alone, such as AurA."
            )

    def folds(self, lm: LM) -> dict[str, Fold]:
        """What becomes of each module's weight and bias, by its dotted name."""
        folds = {}
        for path, output in self.maps.items():
            layer = _layer(lm, path)
            less = 0.0 if is_linear(layer.linear) else weight_offset(layer.linear)
            folds[path] = Fold(layer, output=output, less=less)
        return folds


def _layer(lm: LM, path: str) -> Projection:
    return Projection(path, lm.model.get_submodule(path))


def weight_offset(norm: nn.Module) -> float:
    """What a norm adds to its weight before it multiplies by it: 1 in Gemma 2 and 3 and in
    Nemotron, else 0.
    """
    # A small one of the class, since this one may have no weights in memory.
    norm, signs = type(norm)(2), torch.tensor([1.0, -1.0])
    with torch.no_grad():
        # Half of the difference between mirror images of mean 0 leaves no bias in it.
        scale = (norm(signs) - norm(-signs)) / 2 * signs
        return float((scale - norm.weight).mean().round())


@contextmanager
def output_map_hooks(lm: LM, outputs: Outputs, positions: Positions) -> Iterator[dict[str, bool]]:
    """Map what the modules write. Yields whether each was called, as it is."""
    modules = {path: lm.model.get_submodule(path) for path in outputs.maps}
    numbers = {
        path: on_device(_layer(lm, path).columns, *pair) for path, pair in outputs.maps.items()
    }

    def act(path: str, out: Tensor) -> Tensor:
        check_axes(out, path)
        factors, terms = numbers[path]
        return edited_at(positions, out, scaled_and_moved(out, factors, terms))

    with output_hooks(modules, act) as called:
        yield called
