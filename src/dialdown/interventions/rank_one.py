"""One direction more per layer: each down projection, or output projection of attention, reads its
inputs once more, with one number each, and writes the sum along one direction (METHOD §7).

    W <- W + v u^T        y <- y + v (u . m)

Or a few directions, whose matrices of rank one add up. It folds into every architecture, needs no
bias and costs a forward pass nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DialdownError
from ..models.fits import check_neurons, check_width
from ..models.hooks import Called, Positions, edited_at, input_hooks, output_hooks
from ..models.lm import LM
from ..models.protocol import Site
from ..models.sites import projections
from .folding import on_device


@dataclass(frozen=True, eq=False)
class RankOne:
    """The two vectors of every layer, of its inputs as they are before any gain.

    Attributes:
        reads: (L, F) float64, u: what each neuron's activation counts, or at attention's output
            (L, channels of its heads). Of k directions per layer (k, L, F).
        writes: (L, d) float64, v: along what the sum is written, before a norm that follows; or
            (k, L, d).
        site: which linear layers: `mlp` or `attention`.
    """

    reads: NDArray[np.float64]
    writes: NDArray[np.float64]
    site: Site = "mlp"

    @property
    def inputs_read(self) -> NDArray[np.bool_]:
        """(L, F) which inputs are read at all."""
        return np.asarray(self.reads.reshape(-1, *self.reads.shape[-2:]).any(0))

    @property
    def layers(self) -> list[int]:
        """The layers that write anything."""
        active = np.atleast_2d(self.reads.any(-1) & self.writes.any(-1))
        return np.flatnonzero(active.any(0)).tolist()

    def of(self, layer: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What one layer reads, (k, F), and writes, (k, d)."""
        return np.atleast_2d(self.reads[..., layer, :]), np.atleast_2d(self.writes[..., layer, :])

    def at(self, strength: float) -> RankOne:
        """The same, writing `strength` times as much."""
        return replace(self, writes=strength * self.writes)

    def written(self, lm: LM) -> NDArray[np.float64]:
        """v, (L, d) or (k, L, d), as it reaches the final residual stream: with the weight of a
        norm after the layer that writes it, and the layer's multiplier (METHOD §1).
        """
        written = self.writes.copy()
        for index, projection in enumerate(projections(lm, self.site)):
            written[..., index, :] *= projection.multiplier
            if (gain := projection.post_norm_gain()) is not None:
                written[..., index, :] *= gain.double().cpu().numpy()
        return written

    def check(self, lm: LM, name: str) -> None:
        """Refuse a model of another shape, or without such a site, for the edit `name`
        (DialdownError).
        """
        train = "train it on this model"
        if self.site == "mlp":
            check_neurons(lm, self.reads.shape[-2:], f"What {name} reads has", train)
        else:
            site = projections(lm, self.site)
            channels = site[0].columns.shape[1]
            if self.reads.shape[-2:] != (len(site), channels):
                raise DialdownError(
                    f"What {name} reads has shape {self.reads.shape} and {lm.name} {len(site)} "
                    f"layers whose attention has {channels} channels: {train}."
                )
        check_width(lm, self.writes.shape[-1], f"What {name} writes has", train)


@contextmanager
def rank_one_hooks(lm: LM, edit: RankOne, positions: Positions) -> Iterator[Called]:
    """Add v (u . m) to what each layer of the site writes, with the inputs that it is given before
    any hook that is put on inside the context. Yields whether each layer was called.
    """
    site, layers = projections(lm, edit.site), edit.layers
    numbers = {layer: on_device(site[layer].columns, *edit.of(layer)) for layer in layers}
    sums: dict[int, Tensor] = {}

    def read(layer: int, m: Tensor) -> None:
        u = numbers[layer][0]
        sums[layer] = m.to(u.dtype) @ u.T

    def write(layer: int, out: Tensor) -> Tensor:
        v = numbers[layer][1]
        return edited_at(positions, out, out.to(v.dtype) + sums.pop(layer) @ v)

    writers = {layer: site[layer].linear for layer in layers}
    with input_hooks(site, read, layers) as called, output_hooks(writers, write):
        yield called
