"""What tuning did to the neurons: the statistics behind the paper's tables and figures (METHOD §3,
§9).

All of them need a table with a tuned model and refuse any other (DialdownError). All sums are
float64. A share whose whole is zero is None: a model that did not change has no reduction to take a
share of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .table import GROUPS, NeuronTable

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
PLACES = 300  # points of a curve over ranks, evenly spaced on its logarithmic axis


def group_shares(table: NeuronTable) -> pl.DataFrame:
    """The four groups, with the condition Delta < 0 and without it (tables 4 and 5).

    Returns:
        One row per group and variant: `group`, `tuning_free`, `count`, `share` (of the neurons of
        all four groups) and `reduction_share` (the sum of Delta over the group / the sum of all
        negative Delta). A tuning-free group also holds neurons with Delta > 0, so its last share is
        a net one and may be negative.
    """
    change = table.grid("projection_change")
    reduction = float(change[change < 0].sum())
    rows = []
    for tuning_free in (False, True):
        groups = table.groups(changed=not tuning_free)
        total = sum(int(mask.sum()) for mask in groups.values())
        rows += [
            {
                "group": name,
                "tuning_free": tuning_free,
                "count": int(mask.sum()),
                "share": _share(int(mask.sum()), total),
                "reduction_share": _share(float(change[mask].sum()), reduction),
            }
            for name, mask in groups.items()
        ]
    schema = {"group": pl.String, "tuning_free": pl.Boolean, "count": pl.Int64}
    return pl.DataFrame(rows, schema={**schema, "share": pl.Float64, "reduction_share": pl.Float64})


def negative_shares(table: NeuronTable) -> dict[str, float]:
    """The share of neurons whose mean activation is below zero, of the `base` and the `tuned` model
    (table 13).
    """
    return {name: float((table.grid(f"mean_{name}") < 0).mean()) for name in ("base", "tuned")}


def correlations(table: NeuronTable) -> dict[str, dict[str, float | None]]:
    """Does the shift of the mean activation follow from c_i, or from the base model's mean
    activation? (table 17)

    A shift is before - after, as in the published table: r with the activation is positive where
    means move towards zero.

    Returns:
        For `shift_vs_cosine` and `shift_vs_activation` Pearson's `r` over all `n` neurons and its
        two-sided `p`, both None where one of the two quantities is constant.
    """
    base = table.grid("mean_base").ravel()
    shift = base - table.grid("mean_tuned").ravel()
    return {
        "shift_vs_cosine": _pearson(shift, table.grid("cosine").ravel()),
        "shift_vs_activation": _pearson(shift, base),
    }


def reducing_share(table: NeuronTable) -> float:
    """The share of all neurons whose projection on the direction shrank, Delta < 0 (table 18)."""
    return float((table.grid("projection_change") < 0).mean())


def shifts(table: NeuronTable) -> pl.DataFrame:
    """How little each neuron moved: value vectors and mean activations, base to tuned (section
    5.1).

    A neuron whose base mean is near zero has an enormous shift in %, and one such neuron would
    decide a plain mean. So, as in the paper, `percent` is the mean of `percent_shifts` between
    their own 10th and 90th percentile, and `percent_sd` the standard deviation of these. Both are
    signed, so that shifts towards zero and away from it cancel.

    Returns:
        One row per layer and a last one over all, whose `layer` is null: `layer`,
        `value_cosine_mean`, `value_cosine_min`, `shift_mean` (of |shift|), `shift_median`,
        `percent`, `percent_sd`, `percent_median`.
    """
    cosine, percents = table.grid("value_cosine"), percent_shifts(table)
    shift = np.abs(table.grid("mean_base") - table.grid("mean_tuned"))
    rows = []
    for layer, part in _layers_and_all(table):
        moved, kept = shift[part].ravel(), without_tails(percents[part])
        kept = kept[~np.isnan(kept)]
        rows.append(
            {
                "layer": layer,
                "value_cosine_mean": float(cosine[part].mean()),
                "value_cosine_min": float(cosine[part].min()),
                "shift_mean": float(moved.mean()),
                "shift_median": float(np.median(moved)),
                "percent": float(kept.mean()) if kept.size else None,
                "percent_sd": float(kept.std()) if kept.size else None,
                "percent_median": float(np.nanmedian(percents[part])) if kept.size else None,
            }
        )
    return _by_layer(rows)


def opposing_effects(table: NeuronTable) -> pl.DataFrame:
    """Neurons that write less of the concept against neurons that write more of it (figure 1).

    Returns:
        One row per layer and a last one over all, whose `layer` is null: `layer`, `down` (the sum
        of negative Delta), `up` (of positive Delta) and `net`, in units of the residual stream.
    """
    change = table.grid("projection_change")
    rows = []
    for layer, part in _layers_and_all(table):
        down, up = (float(limit(change[part], 0).sum()) for limit in (np.minimum, np.maximum))
        rows.append({"layer": layer, "down": down, "up": up, "net": down + up})
    return _by_layer(rows)


def percent_shifts(table: NeuronTable) -> Floats:
    """By how much of itself each mean activation fell in tuning, 100 * (before - after) / before
    (section 5.1).

    Returns:
        (layers, neurons) in %: positive towards zero, whatever the sign of the mean, and above 100
        beyond zero; NaN where the base mean is exactly zero.
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
    """Neurons by how much their projection fell; equal ones in the table's order."""
    change = table.grid("projection_change").ravel()
    group = np.full(change.size, len(GROUPS), dtype=np.int64)
    for name, mask in table.groups().items():
        group[mask.ravel()] = GROUPS.index(name)
    falling = np.flatnonzero(change < 0)
    order = falling[np.argsort(change[falling], kind="stable")]
    return Ranking(order, -change[order], group[order])


def _layers_and_all(table: NeuronTable) -> Iterator[tuple[int | None, int | slice]]:
    yield from ((layer, layer) for layer in range(table.shape[0]))
    yield None, slice(None)


def _by_layer(rows: Sequence[dict[str, int | float | None]]) -> pl.DataFrame:
    return pl.DataFrame(
        rows, schema={name: pl.Int64 if name == "layer" else pl.Float64 for name in rows[0]}
    )


def _pearson(x: Floats, y: Floats) -> dict[str, float | None]:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return {"r": None, "p": None, "n": x.size}
    from scipy.stats import pearsonr

    result = pearsonr(x, y)
    return {"r": float(result.statistic), "p": float(result.pvalue), "n": x.size}


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
