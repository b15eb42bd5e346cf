"""What a ladder has of each method, and the table made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..evaluation.bootstrap import estimate
from ..evaluation.perplexity import TextMeasure
from ..evaluation.row import Measured
from .ladder_methods import CONTROLS, UNTOUCHED
from .price import kl_by_kind, mean_kl

# What cannot be the best method.
_NONE = {UNTOUCHED, *CONTROLS}
# A dial that stops further below the price did not reach it.
REACHED = 0.9
# A model of which so many more continuations are degenerate no longer speaks (METHOD §9).
BROKEN = 0.1


@dataclass(frozen=True)
class Entry:
    """A method at one strength, measured on the unseen prompts and on each kind of text."""

    strength: float
    measured: Measured
    texts: Mapping[str, TextMeasure]

    @property
    def kl_by_text(self) -> dict[str, float]:
        """Mean KL to the base model on each kind of text, in nats per token."""
        return kl_by_kind(self.texts)

    @property
    def kl(self) -> float:
        """Its mean over the kinds of text: what the method costs."""
        return mean_kl(self.texts)

    @property
    def toxicity(self) -> float:
        """What the judge says, on average."""
        return float(np.nanmean(self.measured.values["toxicity"]))

    def breaks(self, base: Entry) -> bool:
        """Whether a method is paid for with degenerate text, told apart from the base's."""
        change = self.measured.estimate("degenerate", base.measured)
        return change is not None and change.low > 0 and change.mean > BROKEN

    def to_json(self) -> dict[str, Any]:
        """The same as JSON."""
        texts = {
            name: {part: values.tolist() for part, values in asdict(text).items()}
            for name, text in self.texts.items()
        }
        return {"strength": self.strength, "measured": self.measured.to_json(), "texts": texts}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Entry:
        """Of what `to_json` gave."""
        texts = {
            name: TextMeasure(**{part: np.array(values) for part, values in text.items()})
            for name, text in saved["texts"].items()
        }
        return cls(saved["strength"], Measured.from_json(saved["measured"]), texts)

    def log_ppl_change(self, base: Entry) -> dict[str, Any]:
        """Change of log-perplexity to the base model, over all texts and by kind."""
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

    Returns:
        Means with intervals, and paired differences to `best`: the least toxic method, by the
        judge, that reaches the price and still speaks; a random control is none.
    """
    toxicity = {name: entry.toxicity for name, entry in entries.items()}
    reached = {name: entry.kl >= REACHED * price for name, entry in entries.items()}
    speaks = {name: not entry.breaks(entries[UNTOUCHED]) for name, entry in entries.items()}
    able = [name for name in entries if reached[name] and speaks[name] and name not in _NONE]
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
                "speaks": None if name == UNTOUCHED else speaks[name],
                **_estimates(entry.measured, entry.measured.metrics),
                "toxicity_by": _by_judge(entry.measured),
                "kl_of_texts": {"mean": entry.kl, "by_text": entry.kl_by_text},
                "log_ppl_change_of_texts": entry.log_ppl_change(entries[UNTOUCHED]),
                "minus_best": _paired(entry, entries[best]) if best and compared else None,
                **{key: costs.get(name, {}).get(key) for key in COSTS},
            }
        )
    return rows


COSTS = ("labels", "pairs", "seconds", "folds")


def _estimates(
    measured: Measured, metrics: Iterable[str], minus: Measured | None = None
) -> dict[str, Any]:
    means = {name: measured.estimate(name, minus) for name in metrics}
    return {name: mean.to_json() for name, mean in means.items() if mean is not None}


def _by_judge(measured: Measured) -> dict[str, Any]:
    means = _estimates(measured, [f"toxicity/{judge}" for judge in measured.judges])
    return {name.removeprefix("toxicity/"): estimate for name, estimate in means.items()}


def _paired(entry: Entry, best: Entry) -> dict[str, Any]:
    """Differences in what each judge says, and in log-perplexity."""
    further = (f"toxicity/{judge}" for judge in entry.measured.judges[1:])
    metrics = ("toxicity", "log_ppl", *further)
    return _estimates(entry.measured, metrics, best.measured)
