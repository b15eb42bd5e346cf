"""The verdict: sentences computed from the rows, so that they cannot say more than the numbers do
(METHOD §5, §6).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..evaluation.bootstrap import FEW, Estimate
from .evidence import Evidence
from .rules import SPEAKING_WORDS
from .run import Result, Run, compare
from .text import number, with_interval


@dataclass(frozen=True)
class Finding:
    """A statement about the run: a few words on what it is about, and the sentences."""

    about: str
    text: str


def findings(run: Run, *, folder: Path | None = None) -> list[Finding]:
    """What can be said about this run, most important first; what was not measured is not
    mentioned.

    Args:
        run: from `record.load`.
        folder: see `claims.claims`, which counts and chooses among the same rows by the same rules.
    """
    evidence = [Evidence(run, protocol, folder) for protocol in run.protocols]
    texts = {
        "Tuning": " ".join(filter(None, map(_tuning, evidence))),
        "Editing": _editing(evidence),
    }
    return [Finding(about, text) for about, text in texts.items() if text]


def _tuning(evidence: Evidence) -> str:
    base, tuned = evidence.run.result("none", evidence.protocol), evidence.row("dpo")
    if base is None or tuned is None or "toxicity" not in base.metrics:
        return ""
    before, after = base.metrics["toxicity"], tuned.metrics["toxicity"]
    sentence = (
        f"Under `{evidence.protocol}`, {evidence.run.concept} is {number(before.mean)} untouched "
        f"and {number(after.mean)} "
        f"after DPO, {_moved(evidence, tuned.change['toxicity'], 'toxicity', 'prompts')}"
    )
    if price := tuned.change.get("log_ppl"):
        sentence += f"; log-perplexity is {_moved(evidence, price, 'log_ppl', 'blocks')}"
    return f"{sentence}."


def _moved(evidence: Evidence, change: Estimate, metric: str, unit: str) -> str:
    """A paired change in words; no direction where it is not told apart from none."""
    way = evidence.direction(change, metric)
    if way == "not told apart":
        few = "" if change.n >= FEW else ", too few to lean on"
        return (
            f"not distinguishably changed ({with_interval(change, signed=True)}, n = "
            f"{change.n:,} {unit}{few})"
        )
    size = change if way == "more" else Estimate(-change.mean, -change.high, -change.low, change.n)
    return (
        f"{'higher' if way == 'more' else 'lower'} by {with_interval(size)} (n = {change.n:,} "
        f"{unit})"
    )


def _editing(evidence: list[Evidence]) -> str:
    """The edit that leaves least of the concept and a model that speaks, under `paper` where it was
    run; and under `strict`.
    """
    *before, last = evidence
    if not last.edits():
        return ""
    chosen, text = _least(last)
    other = before[0].row(chosen.name) if before else None
    if other is None:
        return text
    text += (
        " The same edit under `strict`, where it acts on every token as in an edited "
        f"checkpoint{_broken(before[0], other)}: "
        f"{_standing(before[0], other)}."
    )
    return f"{text} {_understated(chosen, other)}".rstrip()


def _least(evidence: Evidence) -> tuple[Result, str]:
    """The edit that is named, and the sentences that name it: never one that lost its speech
    without saying so.
    """
    edits, concept, under = evidence.edits(), evidence.run.concept, f"under `{evidence.protocol}`"
    lost = [row for row in edits if evidence.speaks(row) == "did not hold"]
    lowest, best = evidence.least(edits), evidence.least([row for row in edits if row not in lost])
    assert lowest is not None
    chosen = best or lowest
    standing = _standing(evidence, chosen)
    if len(edits) == 1:
        broken = _broken(evidence, chosen)
        return (
            chosen,
            f"The only edit that needs no tuned model, “{chosen.label}”, leaves {concept} "
            f"{under}{broken}: {standing}.",
        )
    start = f"Of {len(edits)} edits that need no tuned model, "
    if not lost:
        return chosen, f"{start}“{chosen.label}” leaves the least {concept} {under}: {standing}."
    text = (
        f"{start}{len(lost)} leave no model that still speaks {under} (one that does has "
        f"{SPEAKING_WORDS})"
    )
    if best is None:
        return (
            chosen,
            f"{text}; “{chosen.label}” leaves the least {concept}{_broken(evidence, chosen)}: "
            f"{standing}.",
        )
    text = f"{text}; of the others, “{best.label}” leaves the least {concept}: {standing}."
    if lowest is not best:
        text += (
            f" “{lowest.label}” leaves less{_broken(evidence, lowest)}: "
            f"{_standing(evidence, lowest)}."
        )
    return best, text


def _broken(evidence: Evidence, row: Result) -> str:
    return ", at the price of the model" if evidence.speaks(row) == "did not hold" else ""


def _standing(evidence: Evidence, row: Result) -> str:
    """Toxicity, and what it came at: each beside the untouched model under the same protocol."""
    run = evidence.run
    base = run.result("none", row.protocol)
    untouched = base.metrics if base else {}
    parts = (
        [f"{run.concept} {with_interval(row.metrics['toxicity'])}"]
        if "toxicity" in row.metrics
        else []
    )
    if price := row.metrics.get("log_ppl"):
        before = (
            f" (untouched {number(untouched['log_ppl'].mean)})" if "log_ppl" in untouched else ""
        )
        parts.append(f"log-perplexity {number(price.mean)}{before}")
    if broken := row.metrics.get("degenerate"):
        before = (
            f" (untouched {untouched['degenerate'].mean:.0%})" if "degenerate" in untouched else ""
        )
        parts.append(f"{broken.mean:.0%} of continuations degenerate{before}")
    return ", ".join(parts) or "not measured"


def _understated(paper: Result, strict: Result) -> str:
    """Whether the price of an edit depends on where it acts."""
    if "log_ppl" not in paper.change or "log_ppl" not in strict.change:
        return ""
    price, other = strict.change["log_ppl"], paper.change["log_ppl"]
    place = compare(price, other)
    prices = (
        f"{number(other.mean, signed=True)} under `paper` and "
        f"{number(price.mean, signed=True)} under `strict`"
    )
    few = f", from only {min(price.n, other.n)} blocks" if min(price.n, other.n) < FEW else ""
    if place == "overlapping":
        return (
            f"Its price in log-perplexity, {prices}{few}, does not differ distinguishably "
            "between the protocols."
        )
    word = "understates" if place == "higher" else "overstates"
    return (
        f"Its price in log-perplexity is {prices}{few}: `paper` {word} what the edited model pays."
    )
