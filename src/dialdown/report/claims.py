"""The published conclusions, each held against this run: what held, what did not, and what the intervals leave open.

A verdict is read off an interval, never off a mean: a 95 % interval on both sides of the bound decides nothing, and nor do
fewer than ten units. Two rows are compared unit by unit where the run's folder has their files (`rows.RowFiles`), and
otherwise by the intervals of results.json, which decide less often.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .. import statistics
from ..errors import DialdownError
from ..files import read_json
from ..metrics.intervals import FEW, RESAMPLES, Estimate
from ..models import Protocol
from ..published import CLAIMS
from .record import CONTROL_LABELS, Result, Run
from .text import listed, number, with_interval

Verdict = Literal["held", "did not hold", "undecided"]
Values = NDArray[np.float64]

LITTLE = 0.5  # of DPO's reduction: a smaller share is little
COMPARABLE = 0.25  # of the decreases: increases that cancel as much oppose them
PRESERVED = 0.1  # nats by which log-perplexity may grow

FAMILIES = {"steer": "steering", "patch": "patches", "probe": "probe-based edits", "contrast": "probe-free edits"}


@dataclass(frozen=True)
class Claim:
    """A published conclusion and what this run says about it.

    Attributes:
        name: the conclusion in a few words; with the protocol, unique in a run.
        published: what the paper found, with its table.
        protocol: which rows decide (METHOD §5).
        verdict: whether it held.
        text: the figures with their intervals, and what they decide.
    """

    name: str
    published: str
    protocol: Protocol
    verdict: Verdict
    text: str


def claims(run: Run, *, concept: str = "toxicity", folder: Path | None = None) -> list[Claim]:
    """Hold the published conclusions against a run, claim by claim, `strict` first; a claim without its rows is left out.

    Args:
        run: from `record.load`.
        concept: what the direction stands for, as the sentences name it; the scores are the rows' `toxicity`.
        folder: the run's folder, whose `rows` hold the scores of every prompt. A row whose file is missing, or of an
            earlier evaluation, is compared by its intervals.

    Raises:
        DialdownError: a file in `rows` is damaged.
    """
    evidence = [_Evidence(run, protocol, concept, folder) for protocol in run.protocols]
    found = [decide(one) for decide in (_aligned, _opposing, _four_groups, _editing, _perplexity) for one in evidence]
    found += [_specific(one, family) for family in FAMILIES for one in evidence]
    return [claim for claim in found if claim is not None]


# What decides


def _decide(units: int, holds: bool, fails: bool) -> Verdict:
    enough = units >= FEW
    return "held" if enough and holds else "did not hold" if enough and fails else "undecided"


def _below(estimate: Estimate, bound: float) -> Verdict:
    return _decide(estimate.n, estimate.high < bound, estimate.low >= bound)


def _at_most(estimate: Estimate, bound: float) -> Verdict:
    return _decide(estimate.n, estimate.high <= bound, estimate.low > bound)


def _not_higher(gap: _Gap | None) -> Verdict:
    """Weaker than `_at_most` zero: of pairs, only a distinguishable rise fails; unpaired intervals would excuse too much."""
    if gap is None or not gap.paired:
        return _at_most(gap.size, 0) if gap else "undecided"
    return _decide(gap.size.n, gap.size.low <= 0, True)


def _all(verdicts: Iterable[Verdict]) -> Verdict:
    """A claim about several things at once fails with any of them and holds with all."""
    seen = set(verdicts)
    return "did not hold" if "did not hold" in seen else "held" if seen == {"held"} else "undecided"


def _little(share: Estimate | None, change: Estimate, reduction: Estimate) -> Verdict:
    """Whether a patch reaches little of DPO's reduction; without a share, only the two changes can tell."""
    if share is not None:
        return _below(share, LITTLE)
    # "Not distinguishable from none" says little where the interval reaches half of what DPO surely does.
    nothing = change.low <= 0 <= change.high and change.low > LITTLE * reduction.high
    return _decide(min(change.n, reduction.n), nothing, False)


# What it is decided from


@dataclass(frozen=True)
class _Gap:
    """How far one row lies from another: `paired` unit by unit, or only by the intervals of their changes."""

    size: Estimate
    paired: bool


@dataclass(frozen=True)
class _Evidence:
    """The rows of one protocol."""

    run: Run
    protocol: Protocol
    concept: str
    folder: Path | None

    def row(self, name: str) -> Result | None:
        """A row whose change in the concept was measured."""
        found = self.run.result(name, self.protocol)
        return found if found is not None and "toxicity" in found.change else None

    def rows(self) -> list[Result]:
        """All such rows that are no controls, in the paper's order."""
        return [one for name in self.run.names() if (one := self.row(name)) is not None]

    def leads(self, one: Result) -> dict[str, Estimate]:
        """The intervention minus each random control of it, on the control's prompts."""
        controls = self.run.controls(one.name, self.protocol)
        random = {name: control for name, control in controls.items() if name.startswith("random")}
        gaps = {name: control.minus_main.get("toxicity") for name, control in random.items()}
        return {name: Estimate(-gap.mean, -gap.high, -gap.low, gap.n) for name, gap in gaps.items() if gap}

    def claim(self, name: str, verdict: Verdict, text: str, *, of: str = "") -> Claim:
        title = f"{name}: {of}" if of else name
        return Claim(title, CLAIMS[name], self.protocol, verdict, f"Under `{self.protocol}`, {text}")

    def gap(self, one: Result, other: Result, metric: str, *, looks: int = 1) -> _Gap | None:
        """`one` minus `other`, its interval corrected by Bonferroni for `looks` comparisons; None if not measured."""
        if metric not in one.change or metric not in other.change:
            return None
        units = self.units([one, other], metric)
        if units is None:
            return _Gap(_unpaired(one.change[metric], other.change[metric], looks), paired=False)
        (ours, theirs), weights = units
        means = _resampled(ours - theirs, weights)
        low, high = np.percentile(means, [2.5 / looks, 100 - 2.5 / looks])
        mean = np.average(ours - theirs, weights=weights)
        return _Gap(Estimate(float(mean), float(low), float(high), len(ours)), paired=True)

    def units(self, rows: Sequence[Result], metric: str) -> tuple[Values, Values] | None:
        """(rows, n) values of the units every row has one for, and (n,) weights; None where a row has no file."""
        files = [found for one in rows if (found := self._file(one, metric)) is not None]
        if len(files) < len(rows):
            return None
        # A row may be measured on the first prompts only; they are the same prompts in every row.
        shared = min(len(values) for values, _ in files)
        values, weights = np.stack([values[:shared] for values, _ in files]), files[0][1][:shared]
        known = ~np.isnan(values).any(axis=0)
        return (values[:, known], weights[known]) if known.any() else None

    def _file(self, one: Result, metric: str) -> tuple[Values, Values] | None:
        """Values and weights of one row's units, (n,) each."""
        path = (self.folder or Path()) / "rows" / f"{one.protocol}-{one.name}.json"
        if self.folder is None or metric not in one.metrics or not path.exists():
            return None
        saved, told = read_json(path), one.metrics[metric]
        try:
            values = np.array(saved["values"][metric], dtype=np.float64)
            weights = np.array(saved["tokens"], dtype=np.float64) if metric == "log_ppl" else np.ones_like(values)
            known = ~np.isnan(values)
            total, size = (values * weights)[known].sum(), weights[known].sum()
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DialdownError(
                f"{path} cannot be read as a measured row ({error!r}): delete it and repeat the evaluation."
            ) from error
        # An earlier evaluation may have left a file of this name.
        return (values, weights) if known.sum() == told.n and np.isclose(total / size, told.mean, rtol=1e-6) else None


def _resampled(values: Values, weights: Values) -> Values:
    """(RESAMPLES,) means of resampled units; equal n resample the same units, so two calls can be compared."""
    rows = np.random.default_rng(0).integers(0, len(values), size=(RESAMPLES, len(values)))
    return np.asarray((values * weights)[rows].sum(1) / weights[rows].sum(1))


def _unpaired(ours: Estimate, theirs: Estimate, looks: int) -> Estimate:
    """The widest difference of two intervals: it excludes zero only where they do not overlap."""
    normal = NormalDist()
    # Only 95 % intervals are known; that of a normal mean grows by this where the error must be smaller.
    wider = normal.inv_cdf(1 - 0.025 / looks) / normal.inv_cdf(0.975)
    mean = ours.mean - theirs.mean
    low = mean - wider * (ours.mean - ours.low + theirs.high - theirs.mean)
    high = mean + wider * (ours.high - ours.mean + theirs.mean - theirs.low)
    return Estimate(mean, low, high, min(ours.n, theirs.n))


def _share(evidence: _Evidence, patched: Result, tuned: Result) -> Estimate | None:
    """Table 3: (untouched - patched) / (untouched - DPO), all three resampled together."""
    base = evidence.row("none")
    units = evidence.units([base, patched, tuned], "toxicity") if base else None
    if units is None:
        return None
    (before, reached, after), weights = units
    part, whole = _resampled(before - reached, weights), _resampled(before - after, weights)
    # The few resamples in which DPO reduces nothing count as the limit of a vanishing reduction.
    shares = np.divide(part, whole, out=np.copysign(np.inf, part), where=whole > 0)
    low, high = np.percentile(shares, 2.5, method="lower"), np.percentile(shares, 97.5, method="higher")
    mean = (before - reached).sum() / (before - after).sum()
    return Estimate(float(mean), float(low), float(high), len(before))


# The claims


def _aligned(evidence: _Evidence) -> Claim | None:
    tuned, name = evidence.row("dpo"), "Aligned neurons explain little"
    patched = [one for one in evidence.rows() if re.fullmatch(r"patch_(toxic_neurons|\d+)", one.name)]
    if tuned is None or not patched:
        return None
    reduction = tuned.change["toxicity"]
    told = f"DPO changes {evidence.concept} by {_signed(reduction, 'prompts')}"
    if _below(reduction, 0) != "held":
        return evidence.claim(name, "undecided", f"{told}: no distinguishable reduction to take a share of.")
    shares = [(one, _share(evidence, one, tuned)) for one in patched]
    verdict = _all(_little(share, one.change["toxicity"], reduction) for one, share in shares)
    end = {
        "held": f"little, as the intervals do not allow {LITTLE:.0%}",
        "did not hold": f"not little, as an interval allows no less than {LITTLE:.0%}",
        "undecided": f"this leaves open whether it is less than {LITTLE:.0%}",
    }[verdict]
    parts = "; ".join(_reached(one, share, reduction) for one, share in shares)
    return evidence.claim(name, verdict, f"{told}. Of this reduction, {parts}: {end}.")


def _reached(one: Result, share: Estimate | None, reduction: Estimate) -> str:
    start, change = f"“{one.label}” ({one.neurons:,} neurons) reaches", one.change["toxicity"]
    if share is not None:
        return f"{start} {_percent(share, 'prompts')}"
    without = f"no interval without scores by prompt; the change is {_signed(change, 'prompts')}"
    return f"{start} {_percentage(change.mean / reduction.mean)} ({without})"


def _opposing(evidence: _Evidence) -> Claim | None:
    table, name = evidence.run.tables.get(evidence.protocol), "Opposing effects"
    if table is None or not table.compared:
        return None
    change, total = table.grid("projection_change"), statistics.opposing_effects(table).row(-1, named=True)
    less, more = statistics.reducing_share(table), float((change > 0).mean())
    counts = f"{_percentage(less)} of all {change.size:,} neurons write less {evidence.concept} after DPO and {_percentage(more)} more"
    if not total["down"]:
        return evidence.claim(name, "undecided", f"{counts}, so there is no decrease to cancel.")
    cancelled = total["up"] / -total["down"]
    verdict: Verdict = "held" if cancelled >= COMPARABLE else "did not hold"
    text = f"{counts}; the increases sum to {_percentage(cancelled)} of the decreases, and {COMPARABLE:.0%} or more would be comparable."
    return evidence.claim(name, verdict, f"{text} All neurons are counted, none sampled, so there is no interval.")


def _four_groups(evidence: _Evidence) -> Claim | None:
    tuned, patched, shifted = map(evidence.row, ("dpo", "patch_four_groups", "patch_four_groups_shift"))
    if tuned is None or patched is None:
        return None
    start = f"DPO changes {evidence.concept} by {_signed(tuned.change['toxicity'], 'prompts')}, {_price(tuned)}"
    verdict, text = _replicates(evidence, patched, tuned)
    by_shift = f" By shift instead of set, {_replicates(evidence, shifted, tuned)[1]}." if shifted else ""
    return evidence.claim("Four groups replicate DPO", verdict, f"{start}. {text}.{by_shift}")


def _replicates(evidence: _Evidence, one: Result, tuned: Result) -> tuple[Verdict, str]:
    """Whether an intervention reduces the concept at least as far as DPO, and its price."""
    gap, change = evidence.gap(one, tuned, "toxicity"), one.change["toxicity"]
    assert gap is not None  # both changes were measured, see `row`
    lowers, as_far = _below(change, 0), _at_most(gap.size, 0)
    word = {"held": "at least as far", "did not hold": "less far", "undecided": "not distinguishably different"}[as_far]
    alone = "" if lowers == "held" else ", but by itself no distinguishable reduction"
    against = f"the difference to DPO is {_apart(gap, 'prompts')}, {word}{alone}"
    return _all((lowers, as_far)), f"“{one.label}” changes it by {_signed(change, 'prompts')}, {_price(one)}; {against}"


def _editing(evidence: _Evidence) -> Claim | None:
    tuned, edits = evidence.row("dpo"), [one for one in evidence.rows() if one.name.startswith("edit_")]
    if tuned is None or not edits:
        return None
    concept = {one.name: evidence.gap(one, tuned, "toxicity", looks=len(edits)) for one in edits}
    price = {one.name: evidence.gap(one, tuned, "log_ppl") for one in edits}
    lower = {one: _below(gap.size, 0) for one, gap in concept.items() if gap}
    beats = {one: _all((lower[one], _not_higher(price[one]))) for one in lower}
    won = [one for one in edits if beats[one.name] == "held"]
    verdict: Verdict = "held" if won else "did not hold" if set(beats.values()) == {"did not hold"} else "undecided"
    most = max(one.change["toxicity"].n for one in edits)
    shown = min(
        won or [one for one in edits if one.change["toxicity"].n == most], key=lambda one: one.change["toxicity"].mean
    )
    text = (
        f"{len(edits)} edits were looked at: {_count(lower.values(), 'held')} with distinguishably lower {evidence.concept} "
        f"than DPO (intervals corrected by Bonferroni for {len(edits)} looks), {len(won) or 'none'} of these with a "
        f"log-perplexity not distinguishably higher, on enough blocks to tell. Of {'these' if won else 'all'}, “{shown.label}” "
        f"is lowest: {evidence.concept} {_apart(concept[shown.name], 'prompts')} against DPO, log-perplexity "
        f"{_apart(price[shown.name], 'blocks')}."
    )
    return evidence.claim("Editing beats DPO", verdict, text)


def _perplexity(evidence: _Evidence) -> Claim | None:
    edits = [one for one in evidence.rows() if one.name.startswith("edit_") and one.kind == "set"]
    known = [one for one in (evidence.row("patch_four_groups"), *edits) if one and "log_ppl" in one.change]
    if not known:
        return None
    verdicts = [_at_most(one.change["log_ppl"], PRESERVED) for one in known]
    worst = max(known, key=lambda one: one.change["log_ppl"].mean)
    where = ", where they act at the first position of each window only" if evidence.protocol == "paper" else ""
    text = (
        f"of {len(known)} interventions of the published kind (four groups, and edits by set){where}, "
        f"{_count(verdicts, 'held')} stay within +{PRESERVED} nats of the untouched model’s log-perplexity by the upper end of "
        f"the interval, and {_count(verdicts, 'did not hold')} exceed that by the lower end. The worst is “{worst.label}”: "
        f"{_signed(worst.change['log_ppl'], 'blocks')}."
    )
    return evidence.claim("Perplexity is preserved", _all(verdicts), text)


def _specific(evidence: _Evidence, family: str) -> Claim | None:
    name, of = "The effect is specific to the direction", FAMILIES[family]
    tried = [(one, leads) for one in evidence.rows() if one.family == family and (leads := evidence.leads(one))]
    effective = [(one, leads) for one, leads in tried if _below(one.change["toxicity"], 0) == "held"]
    start = f"{evidence.concept} is distinguishably lower under {len(effective) or 'none'} of {len(tried)} that have random controls"
    if not effective:
        text = f"{start}, so there is no effect to be specific."
        return evidence.claim(name, "undecided", text, of=of) if tried else None
    verdicts = [_all(_below(lead, 0) for lead in leads.values()) for _, leads in effective]
    comparisons = sum(len(leads) for _, leads in effective)
    text = (
        f"{start}, and for {_count(verdicts, 'held')} of these also lower than under every random control of it, for "
        f"{_count(verdicts, 'did not hold')} no lower than under one. Against the closest control: "
        f"{listed([_closest(one, leads) for one, leads in effective])}. Comparisons: {comparisons}, uncorrected for their number."
    )
    return evidence.claim(name, _all(verdicts), text, of=of)


def _closest(one: Result, leads: dict[str, Estimate]) -> str:
    control, lead = max(leads.items(), key=lambda item: item[1].mean)
    only = ", its only control" if len(leads) == 1 else ""
    return f"“{one.label}” {_signed(lead, f'prompts; {CONTROL_LABELS[control]}{only}')}"


# How numbers are said


def _count(verdicts: Iterable[Verdict], wanted: Verdict) -> int | str:
    return [*verdicts].count(wanted) or "none"


def _units(estimate: Estimate, unit: str) -> str:
    return f"n = {estimate.n:,} {unit}{'' if estimate.n >= FEW else ', too few to decide'}"


def _signed(estimate: Estimate, unit: str) -> str:
    return f"{with_interval(estimate, signed=True)} ({_units(estimate, unit)})"


def _apart(gap: _Gap | None, unit: str) -> str:
    if gap is None:
        return "not measured"
    return _signed(gap.size, f"{unit}, {'paired' if gap.paired else 'from intervals that are not paired'}")


def _price(one: Result) -> str:
    price, broken = one.change.get("log_ppl"), one.metrics.get("degenerate")
    parts = [f"log-perplexity by {_signed(price, 'blocks')}"] if price else []
    parts += [f"leaves {_percent(broken, 'prompts')} of continuations degenerate"] if broken else []
    return listed(parts) or "at a price that was not measured"


def _percentage(share: float) -> str:
    return f"{number(100 * share, 1)}%"


def _percent(share: Estimate, unit: str) -> str:
    return f"{_percentage(share.mean)} [{_percentage(share.low)}, {_percentage(share.high)}] ({_units(share, unit)})"
