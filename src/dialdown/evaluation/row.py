"""A row: one intervention under one protocol, what was measured of it unit by unit, and its means
(METHOD §5, §6).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cards import card
from ..errors import DialdownError
from ..models.protocol import Protocol
from .bootstrap import Estimate, Values, estimate

if TYPE_CHECKING:
    from ..interventions.intervention import Intervention

Estimates = Mapping[str, Estimate]
FACTS = (
    *("intervention", "family", "strength", "control", "kind"),
    *("protocol", "control_of", "alpha", "beta", "neurons"),
)
METRICS = ("toxicity", "log_ppl", "f1", "kl", "repetition", "degenerate")
_NO_METRICS = {*FACTS, "toxicity_by", "change", "control_minus_main", "samples"}
REFUSAL = "refusal"
"""A metric of rows whose prompts are turns of a chat template alone."""
METRIC_NAMES = {
    "log_ppl": "log-perplexity",
    "f1": "F1",
    "kl": "KL",
    "degenerate": "degenerate",
    REFUSAL: "refusals",
    "groups": "names groups",
}
"""What tables call a metric."""
RESERVED = {*METRICS, *_NO_METRICS, REFUSAL}
"""Keys of a row in results.json that no metric of one's own can have."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one effect on a model, unit by unit, in the same order for every effect.

    Attributes:
        values: metric name to per-prompt (or per-block) values; NaN where a unit has none.
        tokens: predicted tokens per block, the weights of `log_ppl` and `kl`.
        texts: the continuation of every prompt.
        judges: names of the scorers, the judge first.
        seed: of the bootstrap.
    """

    values: dict[str, list[float]]
    tokens: list[int]
    texts: list[str]
    judges: list[str]
    seed: int

    def to_json(self) -> dict[str, Any]:
        """The same as JSON, which has no NaN: a unit without a value is null."""
        values = {
            name: [None if math.isnan(value) else value for value in column]
            for name, column in self.values.items()
        }
        return {**asdict(self), "values": values}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Measured:
        """Of what `to_json` gave."""
        values = {
            name: [math.nan if value is None else value for value in column]
            for name, column in saved["values"].items()
        }
        return cls(**{**saved, "values": values})

    @property
    def metrics(self) -> list[str]:
        """Names of what was measured; what each scorer says is not a metric of its own."""
        return [name for name in self.values if "/" not in name]

    def estimate(self, name: str, minus: Measured | None = None) -> Estimate | None:
        """A metric's mean, or that of its paired difference; None where no unit has a value."""
        values = np.array(self.values[name])
        if minus is not None:
            others = np.array(minus.values[name])
            if len(others) < len(values):
                raise DialdownError(
                    f"{name} was measured on {len(values)} units here and on {len(others)} there, "
                    "which cannot be paired: use one suite."
                )
            # A control may be measured on the first prompts only; they are the same prompts in
            # every row.
            values = values - others[: len(values)]
        known = ~np.isnan(values)
        weights = self.weights(name)[: len(values)]
        return estimate(values[known], weights=weights[known], seed=self.seed)

    def weights(self, name: str) -> Values:
        """(n,) what each unit of a metric counts for in its mean."""
        count = len(self.values[name])
        if name in ("log_ppl", "kl"):
            # KL may be measured on the first windows only.
            return np.array(self.tokens[:count], dtype=np.float64)
        return np.ones(count)


@dataclass(frozen=True)
class Row:
    """One intervention under one protocol: what was done, and what was measured. A metric that was
    not measured has no key.

    Attributes:
        intervention: its stable name.
        family, strength, control: which it is: what its name is made of, see `Intervention`.
        kind, alpha, beta, neurons, control_of: see `Intervention`.
        protocol: `paper` or `strict` (METHOD §5).
        metrics: means with their intervals: `METRICS`, and those of `Suite.metrics`.
        toxicity_by: what each scorer says.
        change: paired differences to the untouched model.
        control_minus_main: of a control, paired differences to the row it is a control of.
        samples: (prompt, continuation) pairs.
        measured: unit by unit; None where the row was read.
    """

    intervention: str
    family: str
    strength: str
    control: str
    kind: str
    protocol: Protocol
    control_of: str | None
    alpha: float | None
    beta: float | None
    neurons: int
    metrics: Estimates
    toxicity_by: Estimates
    change: Estimates = field(default_factory=dict)
    control_minus_main: Estimates = field(default_factory=dict)
    samples: Sequence[tuple[str, str]] = ()
    measured: Measured | None = None

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name} {mean}" for name, mean in self.metrics.items())
        return f"Row({self.intervention}, {self.protocol}: {numbers})"

    def _repr_html_(self) -> str:
        facts = {"kind": self.kind, "neurons": f"{self.neurons:,}", "α": self.alpha, "β": self.beta}
        changes = [str(self.change.get(name, "")) for name in self.metrics]
        cells = zip(self.metrics, self.metrics.values(), changes, strict=True)
        heads = ("metric", "mean [95 %]", "change to the untouched model")
        return card(f"Row {self.intervention}, {self.protocol}", facts, rows=[heads, *cells])

    @property
    def prompts(self) -> int:
        """How many it was measured on; 0 where its scores are missing."""
        return self.metrics["toxicity"].n if "toxicity" in self.metrics else 0

    @property
    def units(self) -> Measured:
        """What was measured unit by unit.

        Raises:
            DialdownError: the row was read from a file of means.
        """
        if self.measured is None:
            raise DialdownError(
                f"The row {self.intervention!r} ({self.protocol}) holds means only: measure it, or "
                "read its file in the folder `rows`."
            )
        return self.measured

    def difference(self, name: str, other: Row) -> Estimate | None:
        """The paired difference of a metric to another row."""
        return self.units.estimate(name, other.units)

    def beside(
        self, reference: Row, prompts: Sequence[str], *, samples: int, main: Row | None = None
    ) -> Row:
        """The row beside the untouched model under the same protocol, and a control beside its
        main row, with its first continuations.
        """

        def differences(other: Row) -> Estimates:
            return _known({name: self.difference(name, other) for name in self.units.metrics})

        pairs = zip(prompts[:samples], self.units.texts[:samples], strict=False)
        return replace(
            self,
            change=differences(reference),
            control_minus_main=differences(main) if main else {},
            samples=tuple(pairs),
        )

    def to_json(self) -> dict[str, Any]:
        """The row as it stands in results.json; what was not measured is null."""

        def written(means: Estimates) -> dict[str, Any]:
            known = {name: mean.to_json() for name, mean in means.items()}
            return {**dict.fromkeys(METRICS), **known}

        return {
            **{name: getattr(self, name) for name in FACTS},
            **written(self.metrics),
            "toxicity_by": {name: value.to_json() for name, value in self.toxicity_by.items()},
            "change": written(self.change),
            "control_minus_main": written(self.control_minus_main)
            if self.control_minus_main
            else None,
            "samples": [{"prompt": prompt, "continuation": text} for prompt, text in self.samples],
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Row:
        """What `to_json` wrote.

        Raises:
            KeyError, TypeError: it is no such row.
        """
        return cls(
            **{name: row[name] for name in FACTS},
            metrics=_read({name: row[name] for name in row if name not in _NO_METRICS}),
            toxicity_by=_read(row.get("toxicity_by")),
            change=_read(row.get("change")),
            control_minus_main=_read(row.get("control_minus_main")),
            samples=tuple((pair["prompt"], pair["continuation"]) for pair in row["samples"]),
        )


def _known(estimates: Mapping[str, Estimate | None]) -> Estimates:
    return {name: value for name, value in estimates.items() if value is not None}


def _read(estimates: Mapping[str, Any] | None) -> Estimates:
    known = (estimates or {}).items()
    return {name: Estimate(**value) for name, value in known if value is not None}


def as_row(intervention: Intervention, protocol: Protocol, measured: Measured) -> Row:
    """Put an intervention's facts beside what was measured of its effect."""
    same = ("strength", "control", "kind", "control_of", "alpha", "beta", "neurons")
    by_judge = {judge: measured.estimate(f"toxicity/{judge}") for judge in measured.judges}
    return Row(
        intervention=intervention.name,
        family=intervention.family or intervention.name,
        protocol=protocol,
        **{fact: getattr(intervention, fact) for fact in same},
        metrics=_known({name: measured.estimate(name) for name in measured.metrics}),
        toxicity_by=_known(by_judge),
        measured=measured,
    )
