"""One direction more per layer: each down projection reads its neurons once more, with one number
each, and writes the sum along one direction (METHOD §7).

    W <- W + v u^T        y <- y + v (u . m)

It folds into every architecture, needs no bias and costs a forward pass nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..models.fits import check_neurons, check_width
from ..models.hooks import Positions, neuron_hooks, output_hooks
from ..models.lm import LM


@dataclass(frozen=True, eq=False)
class RankOne:
    """The two vectors of every layer, of the activations as they are before any gain.

    Attributes:
        reads: (L, F) float64, u: what each neuron's activation counts.
        writes: (L, d) float64, v: along what the sum is written, before a norm that follows the
            MLP.
    """

    reads: NDArray[np.float64]
    writes: NDArray[np.float64]

    def touches(self, layer: int) -> bool:
        """Whether a layer writes anything."""
        return bool(self.reads[layer].any() and self.writes[layer].any())

    def at(self, strength: float) -> RankOne:
        """The same, writing `strength` times as much."""
        return replace(self, writes=strength * self.writes)

    def on(self, lm: LM, layer: int) -> tuple[Tensor, Tensor]:
        """u and v of a layer on its device, in float32 where the model has 16 bits."""
        columns = lm.view.layers[layer].columns
        dtype = torch.promote_types(columns.dtype, torch.float32)
        u, v = map(torch.as_tensor, (self.reads[layer], self.writes[layer]))
        return u.to(columns.device, dtype), v.to(columns.device, dtype)

    def written(self, lm: LM) -> NDArray[np.float64]:
        """(L, d) v as it reaches the residual stream, with the weight of a norm after the MLP
        (METHOD §1).
        """
        written = self.writes.copy()
        for index, layer in enumerate(lm.view.layers):
            if (gain := layer.post_norm_gain()) is not None:
                written[index] *= gain.double().cpu().numpy()
        return written

    def check(self, lm: LM, name: str) -> None:
        """Refuse a model of another shape, for the edit `name` (DialdownError)."""
        train = "train it on this model"
        check_neurons(lm, self.reads.shape, f"What {name} reads has", train)
        check_width(lm, self.writes.shape[-1], f"What {name} writes has", train)


@contextmanager
def rank_one_hooks(lm: LM, edit: RankOne, positions: Positions) -> Iterator[None]:
    """Add v (u . m) to what each down projection writes, with the activations that it is given
    before any hook that is put on inside the context.
    """
    numbers = {
        layer: edit.on(lm, layer) for layer in range(lm.view.n_layers) if edit.touches(layer)
    }
    sums: dict[int, Tensor] = {}

    def read(layer: int, m: Tensor) -> None:
        u = numbers[layer][0]
        sums[layer] = m.to(u.dtype) @ u

    def write(layer: int, out: Tensor) -> Tensor:
        v = numbers[layer][1]
        added = sums.pop(layer)[..., None] * v
        if positions == "all":
            return (out.to(v.dtype) + added).to(out)
        where = -1 if positions == "last" else 0
        edited = out.clone()
        edited[:, where] = (out[:, where].to(v.dtype) + added[:, where]).to(out)
        return edited

    with neuron_hooks(lm, read, [*numbers]), output_hooks(lm, write, [*numbers]):
        yield
