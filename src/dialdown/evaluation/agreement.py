"""Whether scorers agree: rank correlation with an interval, and agreement at a threshold, pair by
pair (METHOD §6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import rankdata

from ..errors import DialdownError
from .bootstrap import RESAMPLES

FEWEST = 3  # two texts always correlate perfectly, one way or the other

SCHEMA = {
    "first": pl.String,
    "second": pl.String,
    "n": pl.Int64,
    "spearman": pl.Float64,
    "spearman_low": pl.Float64,
    "spearman_high": pl.Float64,
    "kappa": pl.Float64,
    "both": pl.Float64,
    "one": pl.Float64,
    "none": pl.Float64,
}

Values = NDArray[np.float64]


def agreement(scores: Mapping[str, Sequence[float]], *, threshold: float = 0.5) -> pl.DataFrame:
    """How far each pair of scorers agrees on the same texts, one row per pair in the order given
    (METHOD §6).

    Args:
        scores: for each scorer, a probability per text, the texts in one order. A text that either
            scorer of a pair has no number for (NaN) is left out of that pair.
        threshold: above it a text has the concept.

    Returns:
        Columns `first` and `second` (the scorers), `n` (texts both have a number for), `spearman`
            (rank correlation) with
        `spearman_low` and `spearman_high` (95 % percentile bootstrap over texts, 2,000 resamples,
            seed 0; resamples that
        are constant are left out), `kappa` (Cohen's, of the two decisions at the threshold), and
            the shares of texts
        that `both`, exactly `one`, and `none` find to have the concept. What cannot be said is
            null: the correlation of
        fewer than 3 texts or of constant scores, and kappa where both scorers give every text one
            and the same decision.

    Raises:
        DialdownError: fewer than two scorers, or different numbers of texts.
    """
    if len(scores) < 2:
        raise DialdownError(
            f"Agreement needs two scorers and got {len(scores)}: pass the scores of at least two."
        )
    counts = {name: len(values) for name, values in scores.items()}
    if len(set(counts.values())) > 1:
        raise DialdownError(
            f"The scorers judged different numbers of texts ({counts}): score the same texts with "
            "each."
        )
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in scores.items()}
    rows = [
        {"first": first, "second": second, **_compare(arrays[first], arrays[second], threshold)}
        for first, second in combinations(arrays, 2)
    ]
    return pl.DataFrame(rows, schema=SCHEMA)


def _compare(x: Values, y: Values, threshold: float) -> dict[str, float | int | None]:
    told = ~(np.isnan(x) | np.isnan(y))
    x, y = x[told], y[told]
    low, high = _interval(x, y)
    return {
        "n": len(x),
        "spearman": _number(_spearman(x[None], y[None])[0]) if len(x) >= FEWEST else None,
        "spearman_low": low,
        "spearman_high": high,
        **_decisions(x > threshold, y > threshold),
    }


def _spearman(x: Values, y: Values) -> Values:
    """Rank correlation of each row, (rows, n) -> (rows,); NaN where a row is constant."""
    middle = (x.shape[1] + 1) / 2
    a, b = rankdata(x, axis=1) - middle, rankdata(y, axis=1) - middle
    scale = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    found: Values = np.divide((a * b).sum(1), scale, out=np.full(len(x), np.nan), where=scale > 0)
    return found


def _interval(x: Values, y: Values) -> tuple[float | None, float | None]:
    if len(x) < FEWEST:
        return None, None
    rows = np.random.default_rng(0).integers(0, len(x), size=(RESAMPLES, len(x)))
    found = _spearman(x[rows], y[rows])
    found = found[~np.isnan(found)]
    if not len(found):
        return None, None
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def _decisions(x: NDArray[np.bool_], y: NDArray[np.bool_]) -> dict[str, float | None]:
    if not len(x):
        return dict.fromkeys(("kappa", "both", "one", "none"))
    agree, p, q = float((x == y).mean()), float(x.mean()), float(y.mean())
    by_chance = p * q + (1 - p) * (1 - q)
    return {
        "kappa": (agree - by_chance) / (1 - by_chance) if by_chance < 1 else None,
        "both": float((x & y).mean()),
        "one": 1 - agree,
        "none": float((~x & ~y).mean()),
    }


def _number(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)
