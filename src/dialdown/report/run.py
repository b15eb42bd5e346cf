"""What a run folder holds, read once: rows with their estimates, the neuron tables, and run.json as
it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..data.reading import whole_text
from ..errors import DialdownError
from ..evaluation.bootstrap import Estimate
from ..files import read_json
from ..models.lm import Protocol
from ..neurons.table import NeuronTable
from ..terminal import printable

PROTOCOLS: tuple[Protocol, ...] = ("strict", "paper")
TABLES: dict[Protocol, str] = {"strict": "neurons.parquet", "paper": "neurons-paper.parquet"}
CONTROLS = (
    "random_neurons",
    "random_neurons_2",
    "random_neurons_3",
    "random_direction",
    "beta_reversed",
    "beta_zero",
)

# The paper's order (table 2): stable name, label, short label for figures.
KNOWN = (
    ("none", "Untouched model", "untouched"),
    ("steer_probe", "Steering along the probe", "steering"),
    ("dpo", "The tuned model (DPO)", "DPO"),
    ("patch_toxic_neurons", "Patch the judged toxic neurons", "patch toxic"),
    ("patch_toxic", "Patch the {} most aligned neurons", "patch top {}"),
    ("patch_TP", "Patch TP", "patch TP"),
    ("patch_TP_AN", "Patch TP + AN", "patch TP+AN"),
    ("patch_TP_AN_TN", "Patch TP + AN + TN", "patch TP+AN+TN"),
    ("patch_four_groups", "Patch all four groups", "patch 4 groups"),
    ("patch_four_groups_shift", "Patch all four groups, by shift", "patch 4, shift"),
    ("patch_all_increasing", "Patch the increasing neurons (sanity check)", "patch increasing"),
    ("edit_probe_set", "Edit along the probe: set", "edit set"),
    ("edit_probe_shift", "Edit along the probe: shift", "edit shift"),
    ("edit_probe_scale", "Edit along the probe: scale", "edit scale"),
    (
        "edit_probe_activation_set",
        "Edit along the probe, least active first: set",
        "edit set, least active",
    ),
    ("edit_probe_free_set", "Edit along the token contrast: set", "contrast set"),
    ("edit_probe_free_shift", "Edit along the token contrast: shift", "contrast shift"),
    ("edit_probe_free_scale", "Edit along the token contrast: scale", "contrast scale"),
)
ORDER = {name: place for place, (name, _, _) in enumerate(KNOWN)}
CONTROL_LABELS = {
    "random_neurons": "random neurons",
    "random_neurons_2": "random neurons, 2nd seed",
    "random_neurons_3": "random neurons, 3rd seed",
    "random_direction": "random direction",
    "beta_reversed": "β reversed",
    "beta_zero": "β = 0",
}


@dataclass(frozen=True)
class Result:
    """One row of results.json; a metric that was not measured has no key."""

    name: str
    kind: str
    protocol: Protocol
    control_of: str | None
    alpha: float | None
    beta: float | None
    neurons: int
    metrics: Mapping[str, Estimate]
    change: Mapping[str, Estimate]
    judged: Mapping[str, Estimate]
    minus_main: Mapping[str, Estimate]
    samples: Sequence[tuple[str, str]]

    @property
    def label(self) -> str:
        """A name to read."""
        if self.control_of is None:
            return label(self.name)
        return f"{label(self.control_of)} — {CONTROL_LABELS.get(self.control, self.control)}"

    @property
    def control(self) -> str:
        """Which control of METHOD §5 it is; empty for none."""
        return self.name.partition("__")[2]

    @property
    def n(self) -> int:
        """The prompts it was measured on; 0 where its scores are missing."""
        return self.metrics["toxicity"].n if "toxicity" in self.metrics else 0

    @property
    def is_strength(self) -> bool:
        """Whether it is there for its strength, beside the row of that name without one
        (`plan`).
        """
        return self.control_of is None and _strength(self.name) != ("", "")

    @property
    def family(self) -> str:
        """The kind of intervention that figures mark alike."""
        for start, family in (
            ("edit_probe_free", "contrast"),
            ("edit", "probe"),
            ("patch", "patch"),
            ("steer", "steer"),
        ):
            if self.name.startswith(start):
                return family
        return "dpo" if self.name == "dpo" else "none"


@dataclass(frozen=True)
class Run:
    """A study as its folder tells it.

    Attributes:
        folder: where it is.
        info: run.json.
        results: all rows.
        tables: the neuron table of each protocol that has one.
    """

    folder: Path
    info: Mapping[str, Any]
    results: Sequence[Result]
    tables: Mapping[Protocol, NeuronTable]

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """The protocols that were run, `strict` first."""
        return tuple(
            one for one in PROTOCOLS if any(result.protocol == one for result in self.results)
        )

    @property
    def model(self) -> str:
        """The model's id."""
        return str(self.setting("model") or "an unnamed model")

    @property
    def concept(self) -> str:
        """What the rows' `toxicity` is the score of."""
        return printable(str(self.setting("concept") or "toxicity"))

    def names(self) -> list[str]:
        """The interventions that are no controls, in the paper's order, unknown ones last."""
        return sorted(
            {one.name: None for one in self.results if one.control_of is None}, key=_place
        )

    def result(self, name: str, protocol: Protocol) -> Result | None:
        """One row, if it was measured."""
        return next(
            (one for one in self.results if one.name == name and one.protocol == protocol), None
        )

    def controls(self, name: str, protocol: Protocol) -> dict[str, Result]:
        """The controls of an intervention under one protocol, by control."""
        found = {
            one.control: one
            for one in self.results
            if one.control_of == name and one.protocol == protocol
        }
        return {
            one: found[one]
            for one in (*CONTROLS, *sorted(found.keys() - set(CONTROLS)))
            if one in found
        }

    def setting(self, key: str) -> Any:
        """A setting by its dotted key; None where run.json has no such key."""
        value: Any = self.info.get("config")
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def stage(self, name: str) -> Mapping[str, Any]:
        """What a stage recorded; empty where it did not run."""
        found: Mapping[str, Any] = self.info.get("stages", {}).get(name) or {}
        return found


def load(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        DialdownError: it has no run.json or results.json, or one that is damaged.
    """
    for name in ("run.json", "results.json"):
        if not (folder / name).exists():
            raise DialdownError(
                f"{folder} has no {name}, so there is nothing to report: pass the folder of a "
                "study that was evaluated."
            )
    info, results = read_json(folder / "run.json"), read_json(folder / "results.json")
    if not (
        isinstance(info, dict) and "config" in info and isinstance(info.get("stages", {}), dict)
    ):
        raise DialdownError(
            f"{folder / 'run.json'} is no record of a study: repeat the command that made the "
            "folder, which makes it again."
        )
    try:
        rows = tuple(_result(row) for row in results["rows"])
    except (KeyError, TypeError) as error:
        raise DialdownError(
            f"{folder / 'results.json'} has a row that cannot be read ({error!r}): repeat the "
            "evaluation."
        ) from error
    if not rows:
        raise DialdownError(
            f"{folder / 'results.json'} has no rows, so there is nothing to report: repeat the "
            "evaluation."
        )
    tables = {
        one: NeuronTable.from_parquet(folder / file)
        for one, file in TABLES.items()
        if (folder / file).exists()
    }
    return Run(folder, info, rows, tables)


def label(name: str) -> str:
    """A name to read for an intervention's stable name; an unknown name stands as it is."""
    return _known(name)[1]


def short(name: str) -> str:
    """The same for a figure, where space is scarce and a control character has no glyph."""
    return printable(_known(name)[2])


def _known(name: str) -> tuple[str, str, str]:
    if (count := _most_aligned(name)) is not None:
        _, long, brief = KNOWN[ORDER["patch_toxic"]]
        return name, long.format(count), brief.format(count)
    if name in ORDER:
        return KNOWN[ORDER[name]]
    plain, strength = _strength(name)
    if plain in ORDER:
        _, long, brief = KNOWN[ORDER[plain]]
        return name, f"{long}, {strength}", f"{brief}, {strength}"
    return name, name, name


def _place(name: str) -> float:
    plain, _ = _strength(name)
    if plain in ORDER:
        # After the row of that name without a strength.
        return ORDER[plain] + 0.5
    return ORDER.get("patch_toxic" if _most_aligned(name) is not None else name, len(ORDER))


def _strength(name: str) -> tuple[str, str]:
    """The name without its strength, and the strength to be read; both empty where it has none."""
    if found := re.fullmatch(r"(.+?)_a([\d.]+)(?:_b([\d.]+))?", name):
        return found[1], f"α = {found[2]}" + (f", β = {found[3]}" if found[3] else "")
    plain, at, strength = name.partition("@")
    return (plain, f"strength {strength}") if at else ("", "")


def _most_aligned(name: str) -> str | None:
    count = name.removeprefix("patch_")
    return count if count != name and count.isdigit() else None


def compare(ours: Estimate, other: Estimate) -> Literal["lower", "higher", "overlapping"]:
    """Where the 95 % interval of `ours` lies against that of `other`."""
    if ours.high < other.low:
        return "lower"
    return "higher" if ours.low > other.high else "overlapping"


def _result(row: Mapping[str, Any]) -> Result:
    metrics = ("toxicity", "log_ppl", "f1", "kl", "repetition", "degenerate")
    names = [row["intervention"], *([] if row["control_of"] is None else [row["control_of"]])]
    for name in names:
        whole_text(name, "The name of a row of results.json")
    return Result(
        row["intervention"],
        row["kind"],
        row["protocol"],
        row["control_of"],
        row["alpha"],
        row["beta"],
        row["neurons"],
        _estimates({name: row.get(name) for name in metrics}),
        _estimates(row.get("change") or {}),
        _estimates(row.get("toxicity_by") or {}),
        _estimates(row.get("control_minus_main") or {}),
        [(sample["prompt"], sample["continuation"]) for sample in row.get("samples") or ()],
    )


def _estimates(found: Mapping[str, Any]) -> dict[str, Estimate]:
    return {name: Estimate(**value) for name, value in found.items() if value is not None}
