"""The table of a ladder as it is read: from the rows of ladder.json, without a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.bootstrap import Estimate
from ..evaluation.row import METRIC_NAMES, REFUSAL

# What is said of methods that are not comparable at the price.
CAVEATS = NOT_REACHED, BROKEN_TEXT = "price not reached", "paid for with degenerate text"
# Shares of continuations that a table shows, where they were measured.
SHARES = ("degenerate", REFUSAL, "groups")


def flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A row of ladder.json with one column a number; what it has not is left out."""
    cells: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            cells |= flat(value, f"{prefix}{key}_")
        elif value is not None:
            cells[f"{prefix}{key}"] = value
    return cells


def short_names(judges: Sequence[str]) -> dict[str, str]:
    """What each judge is called where there is little room: of a folder or a hub id the last part,
    which says which, unless two end alike.
    """
    short = {judge: judge.rpartition("/")[2].removeprefix("embedded:") for judge in judges}
    shared = Counter(short.values())
    return {judge: name if shared[name] == 1 else judge for judge, name in short.items()}


def caveats(row: Mapping[str, Any]) -> list[str]:
    """Why a method's scores are not what it does at the price; nothing where they are."""
    # A table of an earlier version does not say which methods still speak.
    unlike = {NOT_REACHED: row["reached"] is False, BROKEN_TEXT: row.get("speaks") is False}
    return [words for words, applies in unlike.items() if applies]


def shown(rows: Sequence[Mapping[str, Any]], concept: str) -> list[list[str]]:
    """The table as text, its head first."""
    judges = short_names([*rows[0]["toxicity_by"]])
    shares = [metric for metric in SHARES if metric in rows[0]]
    means = ["minus the best", "KL", "log-ppl", *(METRIC_NAMES[metric] for metric in shares)]
    scores = [f"{concept}, {name}" for name in judges.values()]
    lines = [["method", "strength", *scores, *means, "data", "seconds", "folds"]]
    for row in rows:
        data = next((f"{row[kind]:,} {kind}" for kind in ("labels", "pairs") if row[kind]), "")
        lines.append(
            [
                row["method"],
                _strength(row),
                *(_interval(row["toxicity_by"].get(judge)) for judge in judges),
                _interval((row["minus_best"] or {}).get("toxicity"), form="+.3f"),
                f"{row['kl_of_texts']['mean']:.3f}",
                _interval(row["log_ppl_change_of_texts"], form="+.3f"),
                *(f"{row[metric]['mean']:.1%}" for metric in shares),
                data,
                "" if row["seconds"] is None else f"{row['seconds']:.0f}",
                {True: "yes", False: "no", None: ""}[row["folds"]],
            ]
        )
    return lines


def _strength(row: Mapping[str, Any]) -> str:
    if row["reached"] is None:
        return ""
    return f"{row['strength']:.3g}" + ("" if row["reached"] else f", {NOT_REACHED}")


def _interval(value: Mapping[str, Any] | None, *, form: str = ".3f") -> str:
    return format(Estimate.of(value), form) if value else ""


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """The same as a table of Markdown."""
    head, *rows = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))
