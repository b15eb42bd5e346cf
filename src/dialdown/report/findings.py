"""What the page says first: three sentences computed from the rows, so that they cannot say more
than the numbers do (METHOD §5, §6).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..evaluation.bootstrap import FEW, change_sign
from ..evaluation.row import Row
from .evidence import Evidence
from .names import UNITS, label
from .run import Run
from .text import number, with_interval


def findings(run: Run) -> dict[str, str]:
    """What can be said about this run, most important first, a sentence each by what it is about;
    what was not measured is not mentioned.
    """
    evidence = [Evidence(run, protocol) for protocol in run.protocols]
    if not evidence:
        return {}
    chosen, editing = _edited(evidence[0])
    other = evidence[-1].row(chosen.intervention) if chosen and len(evidence) > 1 else None
    texts = {
        "Tuning": _tuned(evidence[0]),
        "Editing": editing,
        "Protocol": _understated(other, chosen) if other and chosen else "",
    }
    return {about: text for about, text in texts.items() if text}


def chosen_edit(run: Run) -> Row | None:
    """The edit that the sentences name; None where none was measured."""
    return _edited(Evidence(run, run.protocols[0]))[0] if run.protocols else None


def _tuned(evidence: Evidence) -> str:
    base, tuned = evidence.run.result("none", evidence.protocol), evidence.row("dpo")
    if base is None or tuned is None or "toxicity" not in base.metrics:
        return ""
    before, after = (number(row.metrics["toxicity"].mean) for row in (base, tuned))
    concept, tuning = evidence.run.concept, "tuning" if evidence.run.setting("tuned") else "DPO"
    text = (
        f"{concept[0].upper()}{concept[1:]} is {before} before {tuning} and {after} after it: "
        f"{_change_of(evidence, tuned, 'toxicity')}"
    )
    if "log_ppl" in tuned.change:
        text += f". Log-perplexity of neutral text is {_change_of(evidence, tuned, 'log_ppl')}"
    return f"{text} (`{evidence.protocol}`)."


def _change_of(evidence: Evidence, row: Row, metric: str) -> str:
    """A paired change in words; no direction where it is not told apart from none."""
    change = row.change[metric]
    way = evidence.change_sign(change, metric)
    few = f" (n = {change.n} {UNITS[metric]}, too few to decide)" if change.n < FEW else ""
    sign = way if change.n < FEW else change_sign(change)
    if sign == "not told apart":
        return f"not distinguishably changed: {with_interval(change, signed=True)}{few}"
    if sign != way:
        few = ", which rounding alone may have done"
    if sign == "more":
        return f"higher by {with_interval(change)}{few}"
    return f"lower by {with_interval(change.reversed())}{few}"


def _edited(evidence: Evidence) -> tuple[Row | None, str]:
    """The best edit that leaves a model that speaks, and the sentence that names it: never one that
    lost its speech without saying so.
    """
    edits, concept = evidence.edits(), evidence.run.concept
    lost = [row for row in edits if evidence.speaks(row) == "did not hold"]
    speaking = [row for row in edits if row not in lost]
    lowest = evidence.least(speaking or edits)
    if lowest is None:
        return None, ""
    chosen = _cheapest(evidence, lowest, speaking)
    left = f"the least {concept}"
    if chosen is not lowest:
        left = f"{concept} that is not told apart from the least, at the lowest price"
    broken = f", of which {len(lost)} break{'s' * (len(lost) == 1)} the model's speech"
    if not speaking:
        broken = ", and each breaks the model's speech"
    text = (
        f"Of the edits made without a tuned model ({len(edits)}{broken if lost else ''}), "
        f"“{label(chosen)}” leaves {left}: {with_interval(chosen.metrics['toxicity'])}"
    )
    if price := chosen.change.get("log_ppl"):
        text += f", for {with_interval(price, signed=True)} log-perplexity"
    if (prompts := chosen.metrics["toxicity"].n) < FEW:
        text += f" ({prompts} prompts, too few to decide)"
    return chosen, f"{text}."


def _cheapest(evidence: Evidence, lowest: Row, edits: Sequence[Row]) -> Row:
    """The edit that costs least of those that no paired interval tells from the one that leaves the
    least of the concept.
    """
    near = [
        row
        for row in edits
        if row is not lowest
        and (gap := evidence.gap(row, lowest, "toxicity"))
        and gap.paired
        and gap.size.low <= 0
    ]
    if not all("log_ppl" in row.change for row in (lowest, *near)):
        return lowest
    return min([lowest, *near], key=lambda row: row.change["log_ppl"].mean)


def _understated(paper: Row, strict: Row) -> str:
    """Whether the price of an edit depends on where it acts."""
    if "log_ppl" not in paper.change or "log_ppl" not in strict.change:
        return ""
    other, price = paper.change["log_ppl"], strict.change["log_ppl"]
    blocks = min(price.n, other.n)
    few = f" (from only {blocks} blocks)" if blocks < FEW else ""
    text = (
        "Measured as published, where it acts at one position of a text (`paper`), the same edit "
        f"has {with_interval(other, signed=True)} log-perplexity{few}"
    )
    if price.low <= other.high and other.low <= price.high:
        return f"{text}, which does not differ distinguishably."
    word = "less" if price.low > other.high else "more"
    return f"{text}: {word} than the edited model really pays."
