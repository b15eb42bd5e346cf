"""Means with bootstrap 95 % intervals, paired differences, agreement of scorers (METHOD §6)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from ..errors import DialdownError

RESAMPLES = 2000
FEW = 10
"""Fewer units than this bootstrap to an interval that is too narrow to decide anything."""
THRESHOLD = 0.5  # above it a text has the concept
FEWEST = 3  # two texts always correlate perfectly, one way or the other

AGREEMENT = {
    "first": pl.String,
    "second": pl.String,
    "n": pl.Int64,
    **dict.fromkeys(("spearman", "spearman_low", "spearman_high", "kappa"), pl.Float64),
    **dict.fromkeys(("both", "one", "none"), pl.Float64),
}

ChangeSign = Literal["less", "more", "not told apart"]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean with a bootstrap 95 % interval over `n` units (prompts, or blocks of text). NaN never
    occurs: no units, no estimate.
    """

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Estimate:
        """What `to_json` gave, whatever stands beside it."""
        return cls(saved["mean"], saved["low"], saved["high"], saved["n"])

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def __format__(self, form: str) -> str:
        """`mean [low, high]`, each number as `form` says (`+.3f`), with a minus sign."""
        if not form:
            return str(self)
        mean, low, high = (
            format(number, form).replace("-", "−") for number in (self.mean, self.low, self.high)
        )
        return f"{mean} [{low}, {high}]"

    def reversed(self) -> Estimate:
        """Of a difference, the difference the other way round."""
        return Estimate(-self.mean, -self.high, -self.low, self.n)

    def to_json(self) -> dict[str, float | int]:
        """`{mean, low, high, n}`, as in results.json."""
        return asdict(self)


def change_sign(change: Estimate) -> ChangeSign:
    """What a paired change says: its sign where its interval leaves zero out and has units enough,
    else nothing (METHOD §6).
    """
    if change.n < FEW or change.low <= 0 <= change.high:
        return "not told apart"
    return "less" if change.high < 0 else "more"


def estimate(
    values: ArrayLike, *, weights: ArrayLike | None = None, looks: int = 1, seed: int = 0
) -> Estimate | None:
    """The (weighted) mean of per-unit values and its percentile bootstrap interval; None for no
    values.

    Args:
        values: (n,) one value per prompt or block of text; for a paired comparison, the
            differences.
        weights: (n,) tokens per unit, for a mean over tokens; equal by default.
        looks: how many comparisons are made; the interval is widened for them (Bonferroni).
        seed: of the resampling. Equal n and seed resample the same units, so rows of one table can
            be compared.
    """
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        return None
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    low, high = _interval(resampled_means(x, w, seed), looks)
    return Estimate(float((x * w).sum() / w.sum()), low, high, len(x))


def resampled_means(values: Values, weights: Values, seed: int = 0) -> Values:
    """(RESAMPLES,) weighted means of resampled units; see `estimate`."""
    return _resampled(
        lambda rows: (values * weights)[rows].sum(1) / weights[rows].sum(1), len(values), seed
    )


def _resampled(statistic: Callable[[NDArray[np.int64]], Values], n: int, seed: int = 0) -> Values:
    """A statistic of (RESAMPLES, n) row numbers."""
    return statistic(np.random.default_rng(seed).integers(0, n, size=(RESAMPLES, n)))


def _interval(values: Values, looks: int = 1) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5 / looks, 100 - 2.5 / looks])
    return float(low), float(high)


def agreement(scores: Mapping[str, Sequence[float]]) -> pl.DataFrame:
    """How far each pair of scorers agrees on the same texts, one row per pair (METHOD §6).

    Args:
        scores: for each scorer, a probability per text, the texts in one order. A text that either
            scorer of a pair has no number for (NaN) is left out of that pair.

    Returns:
        Columns `first` and `second` (the scorers), `n` (texts both have a number for), `spearman`
        (rank correlation) with `spearman_low` and `spearman_high` (95 % percentile bootstrap over
        texts, seed 0; resamples that are constant are left out), `kappa` (Cohen's, of the two
        decisions at .5), and the shares of texts that `both`, exactly `one`, and `none`
        decide to have the concept. What cannot be said is null: the correlation of fewer than 3
        texts or of constant scores, and kappa where both scorers decide the same of every text.
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
        {"first": first, "second": second, **_compare(arrays[first], arrays[second])}
        for first, second in combinations(arrays, 2)
    ]
    return pl.DataFrame(rows, schema=AGREEMENT)


def _compare(x: Values, y: Values) -> dict[str, float | int | None]:
    from sklearn.metrics import cohen_kappa_score

    known = ~(np.isnan(x) | np.isnan(y))
    x, y = x[known], y[known]
    row: dict[str, float | int | None] = {"n": len(x)}
    if len(x) >= FEWEST:
        spearman = float(_spearman(x, y))
        resampled = _resampled(lambda rows: _spearman(x[rows], y[rows]), len(x))
        varied = resampled[~np.isnan(resampled)]
        row["spearman"] = None if np.isnan(spearman) else spearman
        if len(varied):
            row["spearman_low"], row["spearman_high"] = _interval(varied)
    if len(x):
        a, b = x > THRESHOLD, y > THRESHOLD
        same = (a.all() and b.all()) or not (a.any() or b.any())
        row["kappa"] = None if same else float(cohen_kappa_score(a, b))
        row["both"], row["none"] = float((a & b).mean()), float((~a & ~b).mean())
        row["one"] = float((a != b).mean())
    return row


def _spearman(x: Values, y: Values) -> Values:
    """Rank correlation along the last axis; NaN where a row is constant."""
    from scipy.stats import ConstantInputWarning, pearsonr, rankdata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        ranks = rankdata(x, axis=-1), rankdata(y, axis=-1)
        return np.asarray(pearsonr(*ranks, axis=-1).statistic)
