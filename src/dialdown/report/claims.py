"""The published conclusions, each held against this run: what held, what did not, and what the
intervals leave open.

A verdict is read off an interval, never off a mean: a 95 % interval on both sides of the bound
decides nothing, nor do fewer than ten units, nor does an interval that rounding may move across the
bound. What replaces DPO must leave a model that still speaks. Two rows are compared unit by unit
where the run's folder has their files (`rows.RowFiles`), and otherwise by the intervals of
results.json, which decide less often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from ..evaluation.bootstrap import Estimate
from ..evaluation.row import Row
from ..models.protocol import Protocol
from ..neurons import statistics
from ..study.published import CLAIMS
from .evidence import Evidence, Gap
from .names import control_label, group_of, is_aligned_patch, label
from .rules import AT_THE_PRICE, COMPARABLE, LITTLE, PRESERVED, Verdict, any_of, priced, together
from .run import Run
from .text import change_text, estimate_text, listed, percent

FAMILIES = {
    "steer": "steering",
    "patch": "patches",
    "probe": "probe edits",
    "contrast": "contrast edits",
}


@dataclass(frozen=True)
class Claim:
    """A published conclusion and what this run says about it.

    Attributes:
        name: the conclusion in a few words; with the protocol whose rows decide, unique in a run.
        published: what the paper found, with its table.
        text: the figures with their intervals, and what they decide.
    """

    name: str
    published: str
    protocol: Protocol
    verdict: Verdict
    text: str


Decider = Callable[[Evidence], Claim | None]


def claims(run: Run) -> list[Claim]:
    """Hold the published conclusions against a run, claim by claim, `strict` first; a claim without
    its rows is left out.

    A row whose file in the run's `rows` is missing, or of an earlier evaluation, is compared by its
    intervals.

    Raises:
        DialdownError: a file in `rows` is damaged.
    """
    evidence = [Evidence(run, protocol) for protocol in run.protocols]
    deciders: list[Decider] = [_aligned, _opposing, _four_groups, _editing, _perplexity]
    deciders += [partial(_specific, family=name) for name in FAMILIES]
    decided = [_decided(decider, rows) for decider in deciders for rows in evidence]
    return [claim for claim in decided if claim is not None]


def _decided(decider: Decider, evidence: Evidence) -> Claim | None:
    """The claim, with a word where it is rounding alone that leaves it open."""
    claim = decider(evidence)
    if claim is None or claim.verdict != "undecided":
        return claim
    exact = decider(replace(evidence, rounded=False))
    if exact is None or exact.verdict == "undecided":
        return claim
    text = (
        f"{claim.text} The intervals alone would say “{exact.verdict}”; sums rounded otherwise "
        "could turn that (greedy texts are chaotic)."
    )
    return replace(claim, text=text)


def _claim(evidence: Evidence, name: str, verdict: Verdict, text: str, *, of: str = "") -> Claim:
    title = f"{name}: {of}" if of else name
    return Claim(
        title, CLAIMS[name], evidence.protocol, verdict, f"Under `{evidence.protocol}`, {text}"
    )


def _aligned(evidence: Evidence) -> Claim | None:
    tuned, name = evidence.row("dpo"), "Aligned neurons explain little"
    patched = [row for row in evidence.rows() if is_aligned_patch(row)]
    if tuned is None or not patched:
        return None
    reduction = tuned.change["toxicity"]
    sentence = _by_dpo(evidence, tuned)
    if evidence.below(reduction, 0) != "held":
        text = f"{sentence}: no distinguishable reduction to take a share of."
        return _claim(evidence, name, "undecided", text)
    shares = [(row, evidence.share(row, tuned)) for row in patched]
    verdict = together(
        evidence.little(share, row.change["toxicity"], reduction) for row, share in shares
    )
    end = {
        "held": f"little, as the intervals do not allow {LITTLE:.0%}",
        "did not hold": f"not little, as an interval allows no less than {LITTLE:.0%}",
        "undecided": f"this leaves open whether it is less than {LITTLE:.0%}",
    }[verdict]
    parts = "; ".join(_reached(row, share, reduction) for row, share in shares)
    return _claim(evidence, name, verdict, f"{sentence}. Of this reduction, {parts}: {end}.")


def _by_dpo(evidence: Evidence, tuned: Row) -> str:
    change = change_text(tuned.change["toxicity"], "toxicity")
    return f"DPO changes {evidence.run.concept} by {change}"


def _reached(row: Row, share: Estimate | None, reduction: Estimate) -> str:
    start, change = f"“{label(row)}” ({row.neurons:,} neurons) reaches", row.change["toxicity"]
    if share is not None:
        return f"{start} {estimate_text(share, 'prompts', share=True)}"
    without = (
        f"no interval without scores by prompt; the change is {change_text(change, 'toxicity')}"
    )
    return f"{start} {percent(change.mean / reduction.mean)} ({without})"


def _opposing(evidence: Evidence) -> Claim | None:
    table, concept = evidence.run.tables.get(evidence.protocol), evidence.run.concept
    name = "Opposing effects"
    if table is None or not table.compared:
        return None
    change = table.grid("projection_change")
    total = statistics.opposing_effects(table).row(-1, named=True)
    less, more = statistics.reducing_share(table), float((change > 0).mean())
    counts = (
        f"{percent(less)} of all {change.size:,} neurons write less {concept} after DPO "
        f"and {percent(more)} more"
    )
    if not total["down"]:
        return _claim(evidence, name, "undecided", f"{counts}, so there is no decrease to cancel.")
    tuned = evidence.row("dpo")
    if tuned is not None and evidence.below(tuned.change["toxicity"], 0) != "held":
        text = f"{counts}. {_by_dpo(evidence, tuned)}: no distinguishable reduction to account for."
        return _claim(evidence, name, "undecided", text)
    cancelled = total["up"] / -total["down"]
    verdict: Verdict = "held" if cancelled >= COMPARABLE else "did not hold"
    text = (
        f"{counts}; the increases sum to {percent(cancelled)} of the decreases, and "
        f"{COMPARABLE:.0%} or more would be comparable. All neurons are counted, none sampled, so "
        "there is no interval."
    )
    return _claim(evidence, name, verdict, text)


def _four_groups(evidence: Evidence) -> Claim | None:
    names = ("dpo", "patch_four_groups", "patch_four_groups_shift")
    tuned, patched, shifted = map(evidence.row, names)
    if tuned is None or patched is None:
        return None
    verdict, text = _replicates(evidence, patched, tuned)
    text = f"{_by_dpo(evidence, tuned)}, {_price(tuned)}. {text}."
    if shifted:
        text += f" By shift instead of set, {_replicates(evidence, shifted, tuned)[1]}."
    return _claim(evidence, "Four groups replicate DPO", verdict, text)


def _replicates(evidence: Evidence, row: Row, tuned: Row) -> tuple[Verdict, str]:
    """Whether an intervention reduces the concept at least as far as DPO on a model that still
    speaks, and its price.
    """
    gap, change = evidence.gap(row, tuned, "toxicity"), row.change["toxicity"]
    assert gap is not None  # both changes were measured, see `row`
    lowers, as_far = evidence.below(change, 0), evidence.at_most(gap.size, 0)
    word = {
        "held": "at least as far",
        "did not hold": "less far",
        "undecided": "which leaves open which goes further",
    }[as_far]
    alone = "" if lowers == "held" else ", but by itself no distinguishable reduction"
    against = f"the difference to DPO is {_apart(gap, 'toxicity')}, {word}{alone}"
    speaks = evidence.speaks(row)
    text = (
        f"“{label(row)}” changes it by {change_text(change, 'toxicity')}, {_price(row)}, "
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
    gaps = {
        row.intervention: evidence.gap(row, tuned, "toxicity", looks=len(edits)) for row in edits
    }
    prices = {row.intervention: evidence.gap(row, tuned, "log_ppl") for row in edits}
    lower = {name: evidence.below(gap.size, 0) for name, gap in gaps.items() if gap}
    fair = {
        row.intervention: evidence.not_higher(prices[row.intervention], "log_ppl") for row in edits
    }
    speaks = {row.intervention: evidence.speaks(row) for row in edits}
    beats = {name: priced(together((lower[name], fair[name])), speaks[name]) for name in lower}
    verdict = any_of(beats.values())
    won = [
        row
        for row in edits
        if beats[row.intervention] == verdict and verdict in ("held", AT_THE_PRICE)
    ]
    whole = [row for row in edits if speaks[row.intervention] != "did not hold"]
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
        f"that still speaks. Of {among}, “{label(shown)}” is lowest: {evidence.run.concept} "
        f"{_apart(gaps[shown.intervention], 'toxicity')} against DPO, log-perplexity "
        f"{_apart(prices[shown.intervention], 'log_ppl')}, "
        f"{SPEAKS[speaks[shown.intervention]]}."
    )
    return _claim(evidence, "Editing beats DPO", verdict, text)


def _perplexity(evidence: Evidence) -> Claim | None:
    edits = [row for row in evidence.edits() if row.kind == "set"]
    rows = (evidence.row("patch_four_groups"), *edits)
    known = [row for row in rows if row and "log_ppl" in row.change]
    if not known:
        return None
    verdicts = [evidence.at_most(row.change["log_ppl"], PRESERVED, "log_ppl") for row in known]
    worst = max(known, key=lambda row: row.change["log_ppl"].mean)
    first = ", where they act at the first position of each window only"
    where = first if evidence.protocol == "paper" else ""
    text = (
        f"of {len(known)} interventions of the published kind (four groups, and edits by "
        f"set){where}, "
        f"{_count(verdicts, 'held')} stay within +{PRESERVED} nats of the untouched model’s "
        f"log-perplexity by the upper end of the interval, and {_count(verdicts, 'did not hold')} "
        f"exceed that by the lower end. The worst is “{label(worst)}”: "
        f"{change_text(worst.change['log_ppl'], 'log_ppl')}."
    )
    return _claim(evidence, "Perplexity is preserved", together(verdicts), text)


def _specific(evidence: Evidence, family: str) -> Claim | None:
    name, of = "The effect is specific to the direction", FAMILIES[family]
    tried = [
        (row, leads)
        for row in evidence.rows()
        if group_of(row) == family and (leads := evidence.leads(row))
    ]
    effective = [pair for pair in tried if evidence.below(pair[0].change["toxicity"], 0) == "held"]
    start = (
        f"{evidence.run.concept} is distinguishably lower under {len(effective) or 'none'} of "
        f"{len(tried)} that have random controls"
    )
    if not effective:
        text = f"{start}, so there is no effect to be specific."
        return _claim(evidence, name, "undecided", text, of=of) if tried else None
    verdicts = [
        together(evidence.below(lead, 0) for lead in leads.values()) for _, leads in effective
    ]
    comparisons = sum(len(leads) for _, leads in effective)
    text = (
        f"{start}. Of these, lower than every random control: {_count(verdicts, 'held')}; no lower "
        f"than one: {_count(verdicts, 'did not hold')}; open: {_count(verdicts, 'undecided')}. "
        "Against the closest control: "
        f"{listed([_closest(row, leads) for row, leads in effective])}. Comparisons: "
        f"{comparisons}, uncorrected for their number."
    )
    return _claim(evidence, name, together(verdicts), text, of=of)


def _closest(row: Row, leads: dict[str, Estimate]) -> str:
    control, lead = max(leads.items(), key=lambda item: item[1].mean)
    only = ", its only control" if len(leads) == 1 else ""
    note = f"; {control_label(control)}{only}"
    return f"“{label(row)}” {change_text(lead, 'toxicity', note)}"


def _count(verdicts: Iterable[Verdict], verdict: Verdict) -> int | str:
    return [*verdicts].count(verdict) or "none"


def _apart(gap: Gap | None, metric: str) -> str:
    if gap is None:
        return "not measured"
    how = "paired" if gap.paired else "from intervals that are not paired"
    return change_text(gap.size, metric, f", {how}")


def _price(row: Row) -> str:
    price, broken = row.change.get("log_ppl"), row.metrics.get("degenerate")
    parts = [f"log-perplexity by {change_text(price, 'log_ppl')}"] if price else []
    if broken:
        share = estimate_text(broken, "prompts", share=True)
        parts.append(f"leaves {share} of continuations degenerate")
    return listed(parts) or "at a price that was not measured"
