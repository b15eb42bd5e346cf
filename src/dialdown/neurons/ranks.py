"""Neurons by how much their projection fell, what each layer adds up to, and by how much of
themselves activations fell (METHOD §3, §9).
"""

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


def percent_shifts(table: NeuronTable) -> Floats:
    """By how much of itself each mean activation fell in tuning, 100 * (before - after) / before
    (section 5.1).

    Returns:
        (layers, neurons) in %: positive towards zero, whatever the sign of the mean, and above 100
        beyond zero; NaN where the base mean is exactly zero.

    Raises:
        DialdownError: no tuned model was compared.
    """
    base = table.grid("mean_base")
    moved = base - table.grid("mean_tuned")
    return np.asarray(
        np.divide(100 * moved, base, out=np.full(table.shape, np.nan), where=base != 0)
    )


def without_tails(values: Floats) -> Floats:
    """The same array with NaN below its 10th and above its 90th percentile, as section 5.1 and
    figures 4 and 2c leave it.
    """
    known = values[~np.isnan(values)]
    if not known.size:
        return values
    low, high = np.percentile(known, [10, 90])
    return np.where((values >= low) & (values <= high), values, np.nan)
