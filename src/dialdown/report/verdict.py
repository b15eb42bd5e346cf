"""The verdict: sentences computed from the rows, so that they cannot say more than the numbers do (METHOD §5, §6)."""

from __future__ import annotations

from dataclasses import dataclass

from ..metrics.intervals import FEW, Estimate
from ..models import Protocol
from .record import Result, Run, compare
from .text import number, with_interval


@dataclass(frozen=True)
class Finding:
    """A statement about the run: a few words on what it is about, and the sentences."""

    about: str
    text: str


def findings(run: Run) -> list[Finding]:
    """What can be said about this run, most important first; what was not measured is not mentioned."""
    texts = {
        "Tuning": _tuning(run),
        "Editing": _editing(run),
    }
    return [Finding(about, text) for about, text in texts.items() if text]


def strongest_edit(run: Run) -> Result | None:
    """The edit of lowest toxicity under `paper`, or under `strict` where `paper` was not run."""
    edits = _comparable(_edits(run, run.protocols[-1]))
    return min(edits, key=lambda one: one.metrics["toxicity"].mean, default=None)


def _comparable(edits: list[Result]) -> list[Result]:
    """Those measured on all prompts: a mean over fewer may be low because those are mild."""
    known = [one for one in edits if "toxicity" in one.metrics]
    most = max((one.metrics["toxicity"].n for one in known), default=0)
    return [one for one in known if one.metrics["toxicity"].n == most]


def _edits(run: Run, protocol: Protocol) -> list[Result]:
    found = [run.result(name, protocol) for name in run.names() if name.startswith("edit_")]
    return [one for one in found if one is not None]


def _tuning(run: Run) -> str:
    sentences = []
    for protocol in run.protocols:
        base, tuned = run.result("none", protocol), run.result("dpo", protocol)
        if base is None or tuned is None or "toxicity" not in base.metrics or "toxicity" not in tuned.change:
            continue
        before, after = base.metrics["toxicity"], tuned.metrics["toxicity"]
        sentence = (
            f"Under `{protocol}`, {run.concept} is {number(before.mean)} untouched and {number(after.mean)} after DPO, "
            f"{_moved(tuned.change['toxicity'], 'prompts')}"
        )
        if price := tuned.change.get("log_ppl"):
            sentence += f"; log-perplexity is {_moved(price, 'blocks')}"
        sentences.append(f"{sentence}.")
    return " ".join(sentences)


def _moved(change: Estimate, unit: str) -> str:
    """A paired change in words; no direction where the interval holds zero, and a warning where it is of few units."""
    unit += "" if change.n >= FEW else ", too few to lean on"
    if change.low <= 0 <= change.high:
        return f"not distinguishably changed ({with_interval(change, signed=True)}, n = {change.n:,} {unit})"
    size = change if change.low > 0 else Estimate(-change.mean, -change.high, -change.low, change.n)
    return f"{'higher' if change.low > 0 else 'lower'} by {with_interval(size)} (n = {change.n:,} {unit})"


def _editing(run: Run) -> str:
    chosen = strongest_edit(run)
    if chosen is None:
        return ""
    count = len(_comparable(_edits(run, chosen.protocol)))
    start = f"Of {count} edits that need no tuned model" if count > 1 else "The only edit that needs no tuned model"
    name = (
        f", “{chosen.label}” leaves the least {run.concept}"
        if count > 1
        else f", “{chosen.label}”, leaves {run.concept}"
    )
    text = f"{start}{name} under `{chosen.protocol}`: {_standing(run, chosen)}."
    other = run.result(chosen.name, "strict") if chosen.protocol == "paper" else None
    if other is None:
        return text
    text += f" The same edit under `strict`, where it acts on every token as in an edited checkpoint: {_standing(run, other)}."
    return f"{text} {_understated(chosen, other)}".rstrip()


def _standing(run: Run, one: Result) -> str:
    """Toxicity, and what it came at: each beside the untouched model under the same protocol."""
    base = run.result("none", one.protocol)
    untouched = base.metrics if base else {}
    parts = [f"{run.concept} {with_interval(one.metrics['toxicity'])}"] if "toxicity" in one.metrics else []
    if price := one.metrics.get("log_ppl"):
        before = f" (untouched {number(untouched['log_ppl'].mean)})" if "log_ppl" in untouched else ""
        parts.append(f"log-perplexity {number(price.mean)}{before}")
    if broken := one.metrics.get("degenerate"):
        before = f" (untouched {untouched['degenerate'].mean:.0%})" if "degenerate" in untouched else ""
        parts.append(f"{broken.mean:.0%} of continuations degenerate{before}")
    return ", ".join(parts) or "not measured"


def _understated(paper: Result, strict: Result) -> str:
    """Whether the price of an edit depends on where it acts."""
    if "log_ppl" not in paper.change or "log_ppl" not in strict.change:
        return ""
    ours, theirs = strict.change["log_ppl"], paper.change["log_ppl"]
    place = compare(ours, theirs)
    prices = f"{number(theirs.mean, signed=True)} under `paper` and {number(ours.mean, signed=True)} under `strict`"
    few = f", from only {min(ours.n, theirs.n)} blocks" if min(ours.n, theirs.n) < FEW else ""
    if place == "overlapping":
        return f"Its price in log-perplexity, {prices}{few}, does not differ distinguishably between the protocols."
    word = "understates" if place == "higher" else "overstates"
    return f"Its price in log-perplexity is {prices}{few}: `paper` {word} what the edited model pays."
