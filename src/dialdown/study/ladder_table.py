"""What a ladder has of each method, and the table made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation.bootstrap import Estimate, estimate
from ..evaluation.perplexity import TextMeasure
from ..evaluation.row import REFUSAL, Row
from .ladder_methods import CONTROLLED, RANDOM

UNTOUCHED = "untouched"
# What cannot be the best method.
_NONE = {UNTOUCHED, *map(RANDOM.format, CONTROLLED)}
# A dial that stops further below the price did not reach it.
REACHED = 0.9


@dataclass(frozen=True)
class Entry:
    """A method at one strength.

    Attributes:
        row: what was measured on the unseen prompts.
        strength: how far it was dialled.
        texts: what it does to each kind of text.
    """

    row: Row
    strength: float
    texts: Mapping[str, TextMeasure]

    @property
    def kl_by_text(self) -> dict[str, float]:
        """Mean KL to the base model on each kind of text, in nats per token."""
        return {
            name: float(np.average(text.kl, weights=text.tokens))
            for name, text in self.texts.items()
        }

    @property
    def kl(self) -> float:
        """Its mean over the kinds of text: what the method costs."""
        return float(np.mean([*self.kl_by_text.values()]))

    def log_ppl_change(self, base: Entry) -> dict[str, Any]:
        """Change of log-perplexity to the base model over the texts of all kinds, and each
        kind's.
        """
        change = {name: text.nll - base.texts[name].nll for name, text in self.texts.items()}
        tokens = {name: text.tokens for name, text in self.texts.items()}
        together = estimate(
            np.concatenate([*change.values()]), weights=np.concatenate([*tokens.values()])
        )
        by_text = {
            name: float(np.average(values, weights=tokens[name])) for name, values in change.items()
        }
        return {**(together.to_json() if together else {}), "by_text": by_text}


def table(
    entries: Mapping[str, Entry], costs: Mapping[str, Mapping[str, Any]], price: float
) -> list[dict[str, Any]]:
    """The rows of ladder.json, the least toxic first after the untouched model.

    Args:
        entries: by the names of their methods, the untouched model among them.
        costs: what each method took to fit.
        price: the KL that they were dialled to.

    Returns:
        Means with intervals, and paired differences to `best`: the least toxic method, by the
        judge, that reaches the price; a random control is none.
    """
    toxicity = {name: entry.row.metrics["toxicity"].mean for name, entry in entries.items()}
    reached = {name: entry.kl >= REACHED * price for name, entry in entries.items()}
    able = [name for name in entries if reached[name] and name not in _NONE]
    best = min(able, key=lambda name: toxicity[name], default=None)
    rows = []
    for name in sorted(entries, key=lambda name: (name != UNTOUCHED, toxicity[name])):
        entry = entries[name]
        compared = best is not None and name not in (UNTOUCHED, best)
        rows.append(
            {
                "method": name,
                "strength": entry.strength,
                "reached": None if name == UNTOUCHED else reached[name],
                **{metric: mean.to_json() for metric, mean in entry.row.metrics.items()},
                "toxicity_by": _jsons(entry.row.toxicity_by),
                "kl_of_texts": {"mean": entry.kl, "by_text": entry.kl_by_text},
                "log_ppl_change_of_texts": entry.log_ppl_change(entries[UNTOUCHED]),
                "minus_best": _paired(entry.row, entries[best].row) if best and compared else None,
                **{key: costs.get(name, {}).get(key) for key in COSTS},
            }
        )
    return rows


COSTS = ("labels", "pairs", "seconds", "folds")


def _jsons(means: Mapping[str, Estimate | None]) -> dict[str, Any]:
    return {name: mean.to_json() for name, mean in means.items() if mean is not None}


def _paired(row: Row, best: Row) -> dict[str, Any]:
    """Differences in what each judge says, and in log-perplexity."""
    names = ("toxicity", "log_ppl", *(f"toxicity/{judge}" for judge in [*row.toxicity_by][1:]))
    return _jsons({name: row.difference(name, best) for name in names})


def flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A row of ladder.json with one column a number; what it has not is left out."""
    cells: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            cells |= flat(value, f"{prefix}{key}_")
        elif value is not None:
            cells[f"{prefix}{key}"] = value
    return cells


def shown(rows: Sequence[Mapping[str, Any]], concept: str) -> list[list[str]]:
    """The table as text, its head first."""
    judges = [*rows[0]["toxicity_by"]]
    # Of a folder or a hub id, the last part says which.
    names = [judge.rpartition("/")[2].removeprefix("embedded:") for judge in judges]
    refusal = REFUSAL in rows[0]
    head = [
        "method",
        "strength",
        *(f"{concept}, {name}" for name in names),
        "minus the best",
        "KL",
        "log-ppl",
        "degenerate",
        *(["refusals"] if refusal else []),
        "data",
        "seconds",
        "folds",
    ]
    lines = [head]
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
                f"{row['degenerate']['mean']:.1%}",
                *([f"{row[REFUSAL]['mean']:.1%}"] if refusal else []),
                data,
                "" if row["seconds"] is None else f"{row['seconds']:.0f}",
                {True: "yes", False: "no", None: ""}[row["folds"]],
            ]
        )
    return lines


def _strength(row: Mapping[str, Any]) -> str:
    if row["reached"] is None:
        return ""
    return f"{row['strength']:.3g}" + ("" if row["reached"] else ", price not reached")


def _interval(value: Mapping[str, Any] | None, *, form: str = ".3f") -> str:
    # Beside the mean and its ends there may be the same by text.
    keys = ("mean", "low", "high", "n")
    return format(Estimate(*(value[key] for key in keys)), form) if value else ""


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """The same as a table of Markdown."""
    head, *rows = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))
