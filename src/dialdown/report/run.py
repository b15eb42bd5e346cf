"""What a run folder holds, read once: rows with their estimates, the neuron tables, and run.json as
it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..data.reading import whole_text
from ..errors import DialdownError
from ..evaluation.row import Row
from ..files import read_json
from ..models.lm import Protocol
from ..neurons.table import NeuronTable
from ..study.config import Config
from ..terminal import printable
from .names import CONTROLS, label, place

PROTOCOLS: tuple[Protocol, ...] = ("strict", "paper")
TABLES: dict[Protocol, str] = {"strict": "neurons.parquet", "paper": "neurons-paper.parquet"}


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
    results: Sequence[Row]
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
        main = [row for row in self.results if not row.control]
        return list(dict.fromkeys(row.intervention for row in sorted(main, key=place)))

    def result(self, name: str, protocol: Protocol) -> Row | None:
        """One row, if it was measured."""
        return next(
            (one for one in self.results if one.intervention == name and one.protocol == protocol),
            None,
        )

    def both(self, name: str) -> list[Row]:
        """The rows of an intervention under each protocol it was measured under, `strict` first."""
        rows = [self.result(name, protocol) for protocol in self.protocols]
        return [row for row in rows if row is not None]

    def controls(self, name: str, protocol: Protocol) -> dict[str, Row]:
        """The controls of an intervention under one protocol, by control."""
        found = {
            row.control: row
            for row in self.results
            if row.control_of == name and row.protocol == protocol
        }
        return {
            one: found[one]
            for one in (*CONTROLS, *sorted(found.keys() - set(CONTROLS)))
            if one in found
        }

    @cached_property
    def labels(self) -> dict[str, str]:
        """What the interventions and controls are called."""
        return {row.intervention: label(row) for row in (*self.results, *self.front)}

    @cached_property
    def settings(self) -> Config:
        """The study's settings.

        Raises:
            DialdownError: run.json has settings of another version.
        """
        try:
            return Config(**self.info["config"])
        except ValidationError as error:
            raise DialdownError(
                f"{self.folder / 'run.json'} holds settings that this version does not know "
                f"({error.errors()[0]['loc']}): make the report with the version that ran the "
                "study."
            ) from error

    @cached_property
    def front(self) -> Sequence[Row]:
        """The rows of front.json, measured on prompts of their own; empty where there is none."""
        path = self.folder / "front.json"
        return _rows(path) if path.exists() else ()

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
    info = read_json(folder / "run.json")
    if not (
        isinstance(info, dict) and "config" in info and isinstance(info.get("stages", {}), dict)
    ):
        raise DialdownError(
            f"{folder / 'run.json'} is no record of a study: repeat the command that made the "
            "folder, which makes it again."
        )
    rows = _rows(folder / "results.json")
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


def _rows(path: Path) -> tuple[Row, ...]:
    results = read_json(path)
    try:
        for row in results["rows"]:
            parts = map(row.get, ("family", "strength", "control", "control_of"))
            for name in filter(None, (row["intervention"], *parts)):
                whole_text(name, f"The name of a row of {path.name}")
        return tuple(map(Row.from_json, results["rows"]))
    except (KeyError, TypeError) as error:
        raise DialdownError(
            f"{path} has a row that cannot be read ({error!r}): repeat the evaluation."
        ) from error
