"""What claims are decided from: the rows of one protocol, compared unit by unit where the run's
folder has their files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np

from ..evaluation.bootstrap import (
    ChangeSign,
    Estimate,
    Values,
    change_sign,
    estimate,
    resampled_means,
)
from ..evaluation.row import Row
from ..models.protocol import Protocol
from . import rules
from .names import group_of
from .rules import Rounding, Verdict
from .run import Run


@dataclass(frozen=True)
class Gap:
    """How far one row lies from another: `paired` unit by unit, or only by the intervals of their
    changes.
    """

    size: Estimate
    paired: bool


@dataclass(frozen=True)
class Evidence:
    """The rows of one protocol of a run; `rounded` says whether what rounding may do counts."""

    run: Run
    protocol: Protocol
    rounded: bool = True

    @cached_property
    def rounding(self) -> Rounding:
        """What rounding may move these rows' means by."""
        return rules.measured_rounding(self.run, self.protocol) if self.rounded else rules.EXACT

    def row(self, name: str) -> Row | None:
        """A row whose change in the concept was measured."""
        row = self.run.result(name, self.protocol)
        return row if row is not None and "toxicity" in row.change else None

    def rows(self) -> list[Row]:
        """All such rows that are not controls, in the paper's order.

        Further strengths stand in the tables alone: every look makes the others' harder, and what
        is concluded must not depend on how many prompts the controls have.
        """
        rows = [row for name in self.run.names() if (row := self.row(name)) is not None]
        return [row for row in rows if not row.strength]

    def edits(self) -> list[Row]:
        """The edits that need no tuned model: the ones that every sentence about "the edits" counts
        and chooses from.
        """
        return [row for row in self.rows() if group_of(row) in ("probe", "contrast")]

    def least(self, rows: Sequence[Row]) -> Row | None:
        """The row that lowers the concept most against the untouched model on its own prompts."""
        return min(rows, key=lambda row: row.change["toxicity"].mean, default=None)

    def speaks(self, row: Row) -> Verdict:
        """Whether the model still speaks as the untouched one does, by `rules.SPEAKING`; undecided
        where it is not measured.
        """
        if not rules.SPEAKING.keys() <= row.change.keys():
            return "undecided"
        bounds = rules.SPEAKING.items()
        return rules.together(
            self.at_most(row.change[metric], bound, metric) for metric, bound in bounds
        )

    def below(self, toxicity: Estimate, bound: float) -> Verdict:
        """Whether an interval of the concept lies below a bound, also where rounding moves it."""
        return _below(toxicity, bound, self.rounding.reach("toxicity", toxicity.n))

    def at_most(self, estimate: Estimate, bound: float, metric: str = "toxicity") -> Verdict:
        """The same of any metric, with the bound included."""
        reach = self.rounding.reach(metric, estimate.n)
        holds, fails = estimate.high + reach <= bound, estimate.low - reach > bound
        return rules.decide(estimate.n, holds, fails)

    def little(self, share: Estimate | None, change: Estimate, reduction: Estimate) -> Verdict:
        """Whether a patch, which makes `change`, reaches little of DPO's `reduction`; without the
        share that it reaches, only the two changes can tell.
        """
        reach = self.rounding.reach("toxicity", change.n)
        if share is not None:
            moved = reach * (1 + abs(share.mean)) / abs(reduction.mean)
            return _below(share, rules.LITTLE, moved)
        # "Not distinguishable from none" says little where the interval reaches half of what DPO
        # surely does.
        near = change.low + reach <= 0 <= change.high - reach
        nothing = near and change.low - reach > rules.LITTLE * (reduction.high + reach)
        return rules.decide(min(change.n, reduction.n), nothing, False)

    def not_higher(self, gap: Gap | None, metric: str) -> Verdict:
        """Weaker than `at_most` zero: of pairs, only a distinguishable rise fails; unpaired
        intervals would excuse too much.
        """
        if gap is None or not gap.paired:
            return self.at_most(gap.size, 0, metric) if gap else "undecided"
        reach = self.rounding.reach(metric, gap.size.n)
        return rules.decide(gap.size.n, gap.size.low + reach <= 0, gap.size.low - reach > 0)

    def change_sign(self, change: Estimate, metric: str) -> ChangeSign:
        """Which way a change went, if it went that way also where rounding moves it."""
        reach = self.rounding.reach(metric, change.n)
        return change_sign(Estimate(change.mean, change.low - reach, change.high + reach, change.n))

    def leads(self, row: Row) -> dict[str, Estimate]:
        """The intervention minus each random control of it, on the control's prompts."""
        return {
            name: gap.reversed()
            for name, control in self.run.controls(row.intervention, self.protocol).items()
            if name.startswith("random") and (gap := control.control_minus_main.get("toxicity"))
        }

    def gap(self, row: Row, other: Row, metric: str, *, looks: int = 1) -> Gap | None:
        """`row` minus `other`, its interval corrected by Bonferroni for `looks` comparisons; None
        if not measured.
        """
        if metric not in row.change or metric not in other.change:
            return None
        units = self.units([row, other], metric)
        if units is None:
            return Gap(_unpaired(row.change[metric], other.change[metric], looks), paired=False)
        (values, against), weights = units
        size = estimate(values - against, weights=weights, looks=looks)
        return Gap(size, paired=True) if size else None

    def units(self, rows: Sequence[Row], metric: str) -> tuple[Values, Values] | None:
        """(rows, n) values of the units every row has one for, and (n,) weights; None where a row
        has no file.
        """
        files = [saved for row in rows if (saved := self.values(row, metric)) is not None]
        if len(files) < len(rows):
            return None
        # A row may be measured on the first prompts only; they are the same prompts in every row.
        shared = min(len(values) for values, _ in files)
        values, weights = np.stack([values[:shared] for values, _ in files]), files[0][1][:shared]
        known = ~np.isnan(values).any(axis=0)
        return (values[:, known], weights[known]) if known.any() else None

    def values(self, row: Row, metric: str) -> tuple[Values, Values] | None:
        """Values and weights of one row's units, (n,) each, NaN where a unit has none; None where
        the row has no file.
        """
        measured = self.run.measured(row.intervention, row.protocol)
        if measured is None or metric not in row.metrics or metric not in measured.values:
            return None
        values, weights = np.array(measured.values[metric]), measured.weights(metric)
        known, mean = ~np.isnan(values), row.metrics[metric]
        total, size = (values * weights)[known].sum(), weights[known].sum()
        # An earlier evaluation may have left a file of this name.
        same = known.sum() == mean.n and np.isclose(total / size, mean.mean, rtol=1e-6)
        return (values, weights) if same else None

    def share(self, patched: Row, tuned: Row) -> Estimate | None:
        """Table 3: (untouched - patched) / (untouched - DPO), all three resampled together."""
        base = self.row("none")
        units = self.units([base, patched, tuned], "toxicity") if base else None
        if units is None:
            return None
        (before, reached, after), weights = units
        part = resampled_means(before - reached, weights)
        whole = resampled_means(before - after, weights)
        # The few resamples in which DPO reduces nothing count as the limit of a vanishing
        # reduction.
        shares = np.divide(part, whole, out=np.copysign(np.inf, part), where=whole > 0)
        low = np.percentile(shares, 2.5, method="lower")
        high = np.percentile(shares, 97.5, method="higher")
        mean = (before - reached).sum() / (before - after).sum()
        return Estimate(float(mean), float(low), float(high), len(before))


def _below(estimate: Estimate, bound: float, reach: float) -> Verdict:
    holds, fails = estimate.high + reach < bound, estimate.low - reach >= bound
    return rules.decide(estimate.n, holds, fails)


def _unpaired(change: Estimate, other: Estimate, looks: int) -> Estimate:
    """The widest difference of two intervals: it excludes zero only where they do not overlap."""
    normal = NormalDist()
    # Only 95 % intervals are known; that of a normal mean grows by this where the error must be
    # smaller.
    wider = normal.inv_cdf(1 - 0.025 / looks) / normal.inv_cdf(0.975)
    mean = change.mean - other.mean
    low = mean - wider * (change.mean - change.low + other.high - other.mean)
    high = mean + wider * (change.high - change.mean + other.mean - other.low)
    return Estimate(mean, low, high, min(change.n, other.n))
