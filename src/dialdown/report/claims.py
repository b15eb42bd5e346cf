"""The published conclusions, each held against this run: what held, what did not, and what the
intervals leave open.

A verdict is read off an interval, never off a mean: a 95 % interval on both sides of the bound
decides nothing, nor do fewer than ten units, nor does an interval that rounding may move across the
bound. What replaces DPO must leave a model that still speaks. Two rows are compared unit by unit
where the run's folder has their files (`rows.RowFiles`), and otherwise by the intervals of
results.json, which decide less often.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..evaluation.bootstrap import FEW, Estimate
from ..models.lm import Protocol
from ..neurons import statistics
from ..study.published import CLAIMS
from .evidence import Evidence, Gap
from .rules import (
    AT_THE_PRICE,
    COMPARABLE,
    LITTLE,
    PRESERVED,
    Verdict,
    any_of,
    little,
    priced,
    together,
)
from .run import CONTROL_LABELS, Result, Run
from .text import listed, number, with_interval

FAMILIES = {
    "steer": "steering",
    "patch": "patches",
    "probe": "probe-based edits",
    "contrast": "probe-free edits",
}


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


def claims(run: Run, *, folder: Path | None = None) -> list[Claim]:
    """Hold the published conclusions against a run, claim by claim, `strict` first; a claim without
    its rows is left out.

    Args:
        run: from `record.load`.
        folder: the run's folder, whose `rows` hold the scores of every prompt. A row whose file is
            missing, or of an earlier evaluation, is compared by its intervals.

    Raises:
        DialdownError: a file in `rows` is damaged.
    """
    evidence = [Evidence(run, protocol, folder) for protocol in run.protocols]
    deciders: list[Callable[[Evidence], Claim | None]] = [
        _aligned,
        _opposing,
        _four_groups,
        _editing,
        _perplexity,
    ]
    deciders += [_of_family(family) for family in FAMILIES]
    decided = [_decided(decider, rows) for decider in deciders for rows in evidence]
    return [claim for claim in decided if claim is not None]


def _decided(decider: Callable[[Evidence], Claim | None], evidence: Evidence) -> Claim | None:
    """The claim, with a word where it is rounding alone that leaves it open."""
    claim = decider(evidence)
    if claim is None or claim.verdict != "undecided":
        return claim
    exact = decider(replace(evidence, rounded=False))
    if exact is None or exact.verdict == "undecided":
        return claim
    return replace(
        claim,
        text=(
            f"{claim.text} By these intervals alone it {_said(exact.verdict)}, which rounding "
            "may turn."
        ),
    )


def _said(verdict: Verdict) -> str:
    return verdict if verdict.startswith("did") else verdict.replace("held", "would hold", 1)


def _claim(evidence: Evidence, name: str, verdict: Verdict, text: str, *, of: str = "") -> Claim:
    title = f"{name}: {of}" if of else name
    return Claim(
        title, CLAIMS[name], evidence.protocol, verdict, f"Under `{evidence.protocol}`, {text}"
    )


def _aligned(evidence: Evidence) -> Claim | None:
    tuned, name = evidence.row("dpo"), "Aligned neurons explain little"
    patched = [
        row for row in evidence.rows() if re.fullmatch(r"patch_(toxic_neurons|\d+)", row.name)
    ]
    if tuned is None or not patched:
        return None
    reduction = tuned.change["toxicity"]
    told = f"DPO changes {evidence.run.concept} by {_signed(reduction, 'prompts')}"
    if evidence.below(reduction, 0) != "held":
        return _claim(
            evidence, name, "undecided", f"{told}: no distinguishable reduction to take a share of."
        )
    shares = [(row, evidence.share(row, tuned)) for row in patched]
    verdict = together(
        little(
            share,
            row.change["toxicity"],
            reduction,
            evidence.rounding.reach("toxicity", row.change["toxicity"].n),
        )
        for row, share in shares
    )
    end = {
        "held": f"little, as the intervals do not allow {LITTLE:.0%}",
        "did not hold": f"not little, as an interval allows no less than {LITTLE:.0%}",
        "undecided": f"this leaves open whether it is less than {LITTLE:.0%}",
    }[verdict]
    parts = "; ".join(_reached(row, share, reduction) for row, share in shares)
    return _claim(evidence, name, verdict, f"{told}. Of this reduction, {parts}: {end}.")


def _reached(row: Result, share: Estimate | None, reduction: Estimate) -> str:
    start, change = f"“{row.label}” ({row.neurons:,} neurons) reaches", row.change["toxicity"]
    if share is not None:
        return f"{start} {_percent(share, 'prompts')}"
    without = f"no interval without scores by prompt; the change is {_signed(change, 'prompts')}"
    return f"{start} {_percentage(change.mean / reduction.mean)} ({without})"


def _opposing(evidence: Evidence) -> Claim | None:
    table, name, concept = (
        evidence.run.tables.get(evidence.protocol),
        "Opposing effects",
        evidence.run.concept,
    )
    if table is None or not table.compared:
        return None
    change, total = (
        table.grid("projection_change"),
        statistics.opposing_effects(table).row(-1, named=True),
    )
    less, more = statistics.reducing_share(table), float((change > 0).mean())
    counts = (
        f"{_percentage(less)} of all {change.size:,} neurons write less {concept} after DPO "
        f"and {_percentage(more)} more"
    )
    if not total["down"]:
        return _claim(evidence, name, "undecided", f"{counts}, so there is no decrease to cancel.")
    cancelled = total["up"] / -total["down"]
    verdict: Verdict = "held" if cancelled >= COMPARABLE else "did not hold"
    text = (
        f"{counts}; the increases sum to {_percentage(cancelled)} of the decreases, and "
        f"{COMPARABLE:.0%} or more would be comparable."
    )
    return _claim(
        evidence,
        name,
        verdict,
        f"{text} All neurons are counted, none sampled, so there is no interval.",
    )


def _four_groups(evidence: Evidence) -> Claim | None:
    tuned, patched, shifted = map(
        evidence.row, ("dpo", "patch_four_groups", "patch_four_groups_shift")
    )
    if tuned is None or patched is None:
        return None
    start = (
        f"DPO changes {evidence.run.concept} by "
        f"{_signed(tuned.change['toxicity'], 'prompts')}, {_price(tuned)}"
    )
    verdict, text = _replicates(evidence, patched, tuned)
    by_shift = (
        f" By shift instead of set, {_replicates(evidence, shifted, tuned)[1]}." if shifted else ""
    )
    return _claim(evidence, "Four groups replicate DPO", verdict, f"{start}. {text}.{by_shift}")


def _replicates(evidence: Evidence, row: Result, tuned: Result) -> tuple[Verdict, str]:
    """Whether an intervention reduces the concept at least as far as DPO on a model that still
    speaks, and its price.
    """
    gap, change = evidence.gap(row, tuned, "toxicity"), row.change["toxicity"]
    assert gap is not None  # both changes were measured, see `row`
    lowers, as_far = evidence.below(change, 0), evidence.at_most(gap.size, 0)
    word = {
        "held": "at least as far",
        "did not hold": "less far",
        "undecided": "not distinguishably different",
    }[as_far]
    alone = "" if lowers == "held" else ", but by itself no distinguishable reduction"
    against = f"the difference to DPO is {_apart(gap, 'prompts')}, {word}{alone}"
    speaks = evidence.speaks(row)
    text = (
        f"“{row.label}” changes it by {_signed(change, 'prompts')}, {_price(row)}, "
        f"{SPEAKS[speaks]}; {against}"
    )
    return priced(together((lowers, as_far)), speaks), text


SPEAKS: dict[Verdict, str] = {
    "held": "a model that still speaks",
    "did not hold": "no model that still speaks",
    "undecided": "which leaves open whether it still speaks",
}


def _editing(evidence: Evidence) -> Claim | None:
    tuned, edits = evidence.row("dpo"), evidence.edits()
    if tuned is None or not edits:
        return None
    gaps = {row.name: evidence.gap(row, tuned, "toxicity", looks=len(edits)) for row in edits}
    prices = {row.name: evidence.gap(row, tuned, "log_ppl") for row in edits}
    lower = {name: evidence.below(gap.size, 0) for name, gap in gaps.items() if gap}
    fair = {row.name: evidence.not_higher(prices[row.name], "log_ppl") for row in edits}
    speaks = {row.name: evidence.speaks(row) for row in edits}
    beats = {name: priced(together((lower[name], fair[name])), speaks[name]) for name in lower}
    verdict = any_of(beats.values())
    won = [
        row
        for row in edits
        if beats[row.name] in ("held", AT_THE_PRICE) and beats[row.name] == verdict
    ]
    whole = [row for row in edits if speaks[row.name] != "did not hold"]
    shown = evidence.least(won or whole or edits)
    assert shown is not None
    among = "these" if won else "those not shown to have lost their speech" if whole else "all"
    fairly = [name for name in lower if lower[name] == fair[name] == "held"]
    text = (
        f"{len(edits)} edits were looked at: {_count(lower.values(), 'held')} with distinguishably "
        f"lower {evidence.run.concept} "
        f"than DPO (intervals corrected by Bonferroni for {len(edits)} looks), "
        f"{len(fairly) or 'none'} of these with a "
        "log-perplexity not distinguishably higher, on enough blocks to tell, "
        f"{_count(beats.values(), 'held')} of these a model "
        f"that still speaks. Of {among}, “{shown.label}” is lowest: {evidence.run.concept} "
        f"{_apart(gaps[shown.name], 'prompts')} against DPO, log-perplexity "
        f"{_apart(prices[shown.name], 'blocks')}, "
        f"{SPEAKS[speaks[shown.name]]}."
    )
    return _claim(evidence, "Editing beats DPO", verdict, text)


def _perplexity(evidence: Evidence) -> Claim | None:
    edits = [row for row in evidence.edits() if row.kind == "set"]
    known = [
        row
        for row in (evidence.row("patch_four_groups"), *edits)
        if row and "log_ppl" in row.change
    ]
    if not known:
        return None
    verdicts = [evidence.at_most(row.change["log_ppl"], PRESERVED, "log_ppl") for row in known]
    worst = max(known, key=lambda row: row.change["log_ppl"].mean)
    where = (
        ", where they act at the first position of each window only"
        if evidence.protocol == "paper"
        else ""
    )
    text = (
        f"of {len(known)} interventions of the published kind (four groups, and edits by "
        f"set){where}, "
        f"{_count(verdicts, 'held')} stay within +{PRESERVED} nats of the untouched model’s "
        "log-perplexity by the upper end of "
        f"the interval, and {_count(verdicts, 'did not hold')} exceed that by the lower end. The "
        f"worst is “{worst.label}”: "
        f"{_signed(worst.change['log_ppl'], 'blocks')}."
    )
    return _claim(evidence, "Perplexity is preserved", together(verdicts), text)


def _of_family(family: str) -> Callable[[Evidence], Claim | None]:
    return lambda evidence: _specific(evidence, family)


def _specific(evidence: Evidence, family: str) -> Claim | None:
    name, of, concept = (
        "The effect is specific to the direction",
        FAMILIES[family],
        evidence.run.concept,
    )
    tried = [
        (row, leads)
        for row in evidence.rows()
        if row.family == family and (leads := evidence.leads(row))
    ]
    effective = [
        (row, leads) for row, leads in tried if evidence.below(row.change["toxicity"], 0) == "held"
    ]
    start = (
        f"{concept} is distinguishably lower under {len(effective) or 'none'} of {len(tried)} "
        "that have random controls"
    )
    if not effective:
        text = f"{start}, so there is no effect to be specific."
        return _claim(evidence, name, "undecided", text, of=of) if tried else None
    verdicts = [
        together(evidence.below(lead, 0) for lead in leads.values()) for _, leads in effective
    ]
    comparisons = sum(len(leads) for _, leads in effective)
    text = (
        f"{start}, and for {_count(verdicts, 'held')} of these also lower than under every random "
        "control of it, for "
        f"{_count(verdicts, 'did not hold')} no lower than under one. Against the closest control: "
        f"{listed([_closest(row, leads) for row, leads in effective])}. Comparisons: "
        f"{comparisons}, uncorrected for their number."
    )
    return _claim(evidence, name, together(verdicts), text, of=of)


def _closest(row: Result, leads: dict[str, Estimate]) -> str:
    control, lead = max(leads.items(), key=lambda item: item[1].mean)
    only = ", its only control" if len(leads) == 1 else ""
    return (
        f"“{row.label}” {_signed(lead, f'prompts; {CONTROL_LABELS.get(control, control)}{only}')}"
    )


# How numbers are said


def _count(verdicts: Iterable[Verdict], wanted: Verdict) -> int | str:
    return [*verdicts].count(wanted) or "none"


def _units(estimate: Estimate, unit: str) -> str:
    return f"n = {estimate.n:,} {unit}{'' if estimate.n >= FEW else ', too few to decide'}"


def _signed(estimate: Estimate, unit: str) -> str:
    return f"{with_interval(estimate, signed=True)} ({_units(estimate, unit)})"


def _apart(gap: Gap | None, unit: str) -> str:
    if gap is None:
        return "not measured"
    return _signed(
        gap.size, f"{unit}, {'paired' if gap.paired else 'from intervals that are not paired'}"
    )


def _price(row: Result) -> str:
    price, broken = row.change.get("log_ppl"), row.metrics.get("degenerate")
    parts = [f"log-perplexity by {_signed(price, 'blocks')}"] if price else []
    parts += [f"leaves {_percent(broken, 'prompts')} of continuations degenerate"] if broken else []
    return listed(parts) or "at a price that was not measured"


def _percentage(share: float) -> str:
    return f"{number(100 * share, 1)}%"


def _percent(share: Estimate, unit: str) -> str:
    return (
        f"{_percentage(share.mean)} [{_percentage(share.low)}, {_percentage(share.high)}] "
        f"({_units(share, unit)})"
    )
