"""Neurons by how much their projection fell, and what each layer adds up to (METHOD §3, §9)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .table import GROUPS, NeuronTable

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
PLACES = 300  # points of a curve over ranks, evenly spaced on its logarithmic axis


@dataclass(frozen=True, eq=False)
class Ranking:
    """The neurons whose projection fell, the largest fall first.

    Attributes:
        order: (n,) places in the table, layer · neurons per layer + neuron.
        reduction: (n,) −Δ in residual units, descending.
        group: (n,) place in GROUPS; `len(GROUPS)` for a neuron of no group.
    """

    order: Integers
    reduction: Floats
    group: Integers

    @property
    def share(self) -> Floats:
        """(n,) each neuron's share of the whole reduction."""
        return np.asarray(self.reduction / self.reduction.sum())

    @property
    def cumulated(self) -> Floats:
        """(n,) share of the first k neurons together, the last one exactly 1."""
        total = np.cumsum(self.reduction)
        return np.asarray(total / total[-1:])

    def places(self, count: int = PLACES) -> Integers:
        """At most `count` indices, evenly spaced on a logarithmic axis of ranks; first and last are
        always there.
        """
        n = len(self.order)
        if not n:
            return np.empty(0, dtype=np.int64)
        return np.unique(np.geomspace(1, n, min(count, n)).round().astype(np.int64)) - 1


def ranking(table: NeuronTable) -> Ranking:
    """Neurons by how much their projection fell; equal ones in the table's order.

    Raises:
        DialdownError: no tuned model was compared.
    """
    change = table.grid("projection_change").ravel()
    group = np.full(change.size, len(GROUPS), dtype=np.int64)
    for name, mask in table.groups().items():
        group[mask.ravel()] = GROUPS.index(name)
    falling = np.flatnonzero(change < 0)
    order = falling[np.argsort(change[falling], kind="stable")]
    return Ranking(order, -change[order], group[order])


def layer_effects(table: NeuronTable) -> tuple[Floats, Floats]:
    """Sum of the positive and of the negative projection changes of each layer, (layers,) each,
    residual units.

    Raises:
        DialdownError: no tuned model was compared.
    """
    change = table.grid("projection_change")
    return np.maximum(change, 0).sum(1), np.minimum(change, 0).sum(1)
