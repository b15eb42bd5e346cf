"""Means with bootstrap 95 % intervals, and paired differences (METHOD §6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
FEW = 10
"""Fewer units than this bootstrap to an interval that is too narrow to decide anything."""

Direction = Literal["less", "more", "not told apart"]


@dataclass(frozen=True)
class Estimate:
    """A mean with a bootstrap 95 % interval over `n` units (prompts, or blocks of text). NaN never
    occurs: no units, no estimate.
    """

    mean: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float | int]:
        """`{mean, low, high, n}`, as in results.json."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}


def direction(change: Estimate) -> Direction:
    """What a paired change says: its sign where its interval leaves zero out and has units enough,
    else nothing (METHOD §6).
    """
    if change.n < FEW or change.low <= 0 <= change.high:
        return "not told apart"
    return "less" if change.high < 0 else "more"


def estimate(
    values: ArrayLike, *, weights: ArrayLike | None = None, seed: int = 0
) -> Estimate | None:
    """The (weighted) mean of per-unit values and its percentile bootstrap interval; None for no
    values.

    Args:
        values: (n,) one value per prompt or block of text; for a paired comparison, the
            differences.
        weights: (n,) tokens per unit, for a mean over tokens; equal by default.
        seed: of the resampling. Equal n and seed resample the same units, so rows of one table can
            be compared.
    """
    x = np.asarray(values, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    if not len(x):
        return None
    rows = np.random.default_rng(seed).integers(0, len(x), size=(RESAMPLES, len(x)))
    means: NDArray[np.float64] = (x[rows] * w[rows]).sum(1) / w[rows].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float((x * w).sum() / w.sum()), float(low), float(high), len(x))
