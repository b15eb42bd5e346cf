"""What the page says first: sentences computed from the rows, so that they cannot say more than the
numbers do (METHOD §5, §6).
"""

from __future__ import annotations

from pathlib import Path

from ..evaluation.bootstrap import FEW
from ..evaluation.row import Row
from .evidence import Evidence
from .names import UNITS, label
from .rules import SPEAKING_WORDS
from .run import Run
from .text import number, said, said_change, with_interval


def findings(run: Run, *, folder: Path | None = None) -> dict[str, str]:
    """What can be said about this run, most important first, by what it is about; what was not
    measured is not mentioned.

    Args:
        run: from `run.load`.
        folder: see `claims`, which counts and chooses among the same rows by the same rules.
    """
    evidence = [Evidence(run, protocol, folder) for protocol in run.protocols]
    tuning = " ".join(filter(None, map(_tuned, evidence)))
    texts = {"Tuning": tuning, "Editing": _edited(evidence)}
    return {about: text for about, text in texts.items() if text}


def _tuned(evidence: Evidence) -> str:
    base, tuned = evidence.run.result("none", evidence.protocol), evidence.row("dpo")
    if base is None or tuned is None or "toxicity" not in base.metrics:
        return ""
    before, after = (number(row.metrics["toxicity"].mean) for row in (base, tuned))
    sentence = (
        f"Under `{evidence.protocol}`, {evidence.run.concept} is {before} untouched and {after} "
        f"after DPO, {_moved(evidence, tuned, 'toxicity')}"
    )
    if "log_ppl" in tuned.change:
        sentence += f"; log-perplexity is {_moved(evidence, tuned, 'log_ppl')}"
    return f"{sentence}."


def _moved(evidence: Evidence, row: Row, metric: str) -> str:
    """A paired change in words; no direction where it is not told apart from none."""
    change = row.change[metric]
    way = evidence.direction(change, metric)
    if way == "not told apart":
        return f"not distinguishably changed: {said_change(change, metric)}"
    if way == "more":
        return f"higher by {said(change, UNITS[metric])}"
    return f"lower by {said(change.reversed(), UNITS[metric])}"


def _edited(evidence: list[Evidence]) -> str:
    """The edit that leaves least of the concept and a model that speaks, under `paper` where it was
    run; and under `strict`.
    """
    *before, last = evidence
    if not last.edits():
        return ""
    chosen, text = _least(last)
    other = before[0].row(chosen.intervention) if before else None
    if other is None:
        return text
    text += (
        " The same edit under `strict`, where it acts on every token as in an edited "
        f"checkpoint{_broken(before[0], other)}: {_standing(before[0], other)}."
    )
    return f"{text} {_understated(chosen, other)}".rstrip()


def _least(evidence: Evidence) -> tuple[Row, str]:
    """The edit that is named, and the sentences that name it: never one that lost its speech
    without saying so.
    """
    edits, concept, under = evidence.edits(), evidence.run.concept, f"under `{evidence.protocol}`"
    lost = [row for row in edits if evidence.speaks(row) == "did not hold"]
    lowest, best = evidence.least(edits), evidence.least([row for row in edits if row not in lost])
    assert lowest is not None
    chosen = best or lowest

    def leaves(row: Row, what: str) -> str:
        standing = _standing(evidence, row)
        return f"“{label(row)}” leaves {what}{_broken(evidence, row)}: {standing}."

    if len(edits) == 1:
        return chosen, f"Of the only edit that needs no tuned model, {leaves(chosen, concept)}"
    text = f"Of {len(edits)} edits that need no tuned model, "
    if not lost:
        return chosen, text + leaves(chosen, f"the least {concept} {under}")
    text += (
        f"{len(lost)} leave no model that still speaks {under} (one that does has "
        f"{SPEAKING_WORDS}); {'of the others, ' if best else ''}"
        f"{leaves(chosen, f'the least {concept}')}"
    )
    return chosen, text if chosen is lowest else f"{text} {leaves(lowest, 'less')}"


def _broken(evidence: Evidence, row: Row) -> str:
    return ", at the price of the model" if evidence.speaks(row) == "did not hold" else ""


def _standing(evidence: Evidence, row: Row) -> str:
    """What the row leaves and what it came at, each beside the untouched model under the same
    protocol.
    """
    base = evidence.run.result("none", row.protocol)
    untouched = base.metrics if base else {}
    parts = [f"{evidence.run.concept} {with_interval(row.metrics['toxicity'])}"]
    for metric, words, share in (
        ("log_ppl", "log-perplexity {}", False),
        ("degenerate", "{} of continuations degenerate", True),
    ):
        if metric in row.metrics:
            means = [means[metric].mean for means in (row.metrics, untouched) if metric in means]
            now, *before = (f"{mean:.0%}" if share else number(mean) for mean in means)
            parts.append(words.format(now) + "".join(f" (untouched {mean})" for mean in before))
    return ", ".join(parts)


def _understated(paper: Row, strict: Row) -> str:
    """Whether the price of an edit depends on where it acts."""
    if "log_ppl" not in paper.change or "log_ppl" not in strict.change:
        return ""
    other, price = paper.change["log_ppl"], strict.change["log_ppl"]
    prices = (
        f"{number(other.mean, signed=True)} under `paper` and "
        f"{number(price.mean, signed=True)} under `strict`"
    )
    blocks = min(price.n, other.n)
    prices += f", from only {blocks} blocks" if blocks < FEW else ""
    if price.low <= other.high and other.low <= price.high:
        return (
            f"Its price in log-perplexity, {prices}, does not differ distinguishably between the "
            "protocols."
        )
    word = "understates" if price.low > other.high else "overstates"
    return f"Its price in log-perplexity is {prices}: `paper` {word} what the edited model pays."
