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
from ..evaluation.row import Measured, Row
from ..files import read_json, read_sealed
from ..models.protocol import Protocol
from ..models.templates import Template
from ..neurons.table import NeuronTable
from ..study.config import Config
from ..study.outputs import RUN, so_far
from ..study.rows import measured_in
from ..terminal import printable
from .names import CONTROLS, label, place

PROTOCOLS: tuple[Protocol, ...] = ("strict", "paper")
TABLES: dict[Protocol, str] = {"strict": "neurons.parquet", "paper": "neurons-paper.parquet"}


@dataclass(frozen=True)
class Run:
    """A study as its folder tells it: `info` is run.json, `results` all rows, `tables` the neuron
    table of each protocol that has one, and `of` how many rows there will be, where not all of them
    are measured yet; 0 where that is not known.
    """

    folder: Path
    info: Mapping[str, Any]
    results: Sequence[Row]
    tables: Mapping[Protocol, NeuronTable]
    of: int | None = None

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """The protocols that were run, `strict` first."""
        measured = {row.protocol for row in self.results}
        return tuple(protocol for protocol in PROTOCOLS if protocol in measured)

    @property
    def model(self) -> str:
        """The model's id."""
        return str(self.setting("model") or "an unnamed model")

    @property
    def concept(self) -> str:
        """What the rows' `toxicity` is the score of."""
        return printable(str(self.setting("concept") or "toxicity"))

    @property
    def template(self) -> Template:
        """What prompts were; `none` too where nothing was prompted yet."""
        stages = self.info.get("stages", {}).values()
        return next((facts["template"] for facts in stages if "template" in facts), "none")

    def names(self) -> list[str]:
        """The interventions that are not controls, in the paper's order, unknown ones last."""
        main = [row for row in self.results if not row.control]
        return list(dict.fromkeys(row.intervention for row in sorted(main, key=place)))

    def result(self, name: str, protocol: Protocol) -> Row | None:
        """One row, if it was measured."""
        key = (name, protocol)
        return next((row for row in self.results if (row.intervention, row.protocol) == key), None)

    def both(self, name: str) -> list[Row]:
        """The rows of an intervention under each protocol it was measured under, `strict` first."""
        rows = [self.result(name, protocol) for protocol in self.protocols]
        return [row for row in rows if row is not None]

    def controls(self, name: str, protocol: Protocol) -> dict[str, Row]:
        """The controls of an intervention under one protocol, by control."""
        key = (name, protocol)
        rows = [row for row in self.results if (row.control_of, row.protocol) == key]
        order = {control: number for number, control in enumerate(CONTROLS)}
        rows.sort(key=lambda row: (order.get(row.control, len(order)), row.control))
        return {row.control: row for row in rows}

    def measured(self, name: str, protocol: Protocol) -> Measured | None:
        """What was measured of a row unit by unit; None where the folder has no file of it.

        Raises:
            DialdownError: the file is damaged, or no such row.
        """
        path = self.folder / "rows" / f"{protocol}-{name}.json"
        if not path.exists():
            return None
        try:
            return measured_in(read_sealed(path) or {})
        except (AttributeError, KeyError, TypeError) as error:
            raise DialdownError(
                f"{path} cannot be read as a measured row ({error!r}): repeat the command that "
                "made this folder, which makes it again."
            ) from error

    @cached_property
    def labels(self) -> dict[str, str]:
        """What the interventions and controls are called."""
        return {row.intervention: label(row) for row in (*self.results, *self.front)}

    @cached_property
    def settings(self) -> Config:
        """The study's settings."""
        return settings_of(self.folder, self.info)

    @property
    def front(self) -> Sequence[Row]:
        """The rows of the front, measured on prompts of their own; empty where there are none."""
        return self._front[0]

    @property
    def front_of(self) -> int | None:
        """How many rows the front will have, as `of` says of the others."""
        return self._front[1]

    @cached_property
    def _front(self) -> tuple[Sequence[Row], int | None]:
        return _rows(self.folder, "front.json")

    @property
    def whole(self) -> bool:
        """Whether all rows that were asked for are measured."""
        return bool(self.results) and self.of is None and self.front_of is None

    def setting(self, key: str) -> Any:
        """A setting by its key; None where run.json has no such key."""
        config = self.info.get("config")
        return config.get(key) if isinstance(config, Mapping) else None

    def stage(self, name: str) -> Mapping[str, Any]:
        """What a stage recorded; empty where it did not run."""
        recorded: Mapping[str, Any] = self.info.get("stages", {}).get(name) or {}
        return recorded


def of_all(rows: Sequence[Row], of: int | None) -> str:
    """How many rows are measured, and of how many where some are missing."""
    return f"{len(rows):,}{f' of {of:,}' if of else ''}"


def settings_of(folder: Path, info: Mapping[str, Any]) -> Config:
    """The settings in a study's run.json (DialdownError where it is of another version)."""
    try:
        return Config(**info["config"])
    except ValidationError as error:
        raise DialdownError(
            f"{folder / RUN} holds settings that this version does not know "
            f"({error.errors()[0]['loc']}): use the version that ran the study."
        ) from error


def load(folder: Path) -> Run:
    """Read a run folder, as far as the run got.

    Raises:
        DialdownError: it has no run.json, a file in it is damaged, or rows that were measured are
            gone.
    """
    path = folder / "run.json"
    if not path.exists():
        raise DialdownError(
            f"{folder} {'has no run.json' if folder.is_dir() else 'is not there'}, so there is "
            "nothing to report: pass the folder of a study, which `dialdown run` makes."
        )
    info = read_json(path)
    if not (
        isinstance(info, dict) and "config" in info and isinstance(info.get("stages", {}), dict)
    ):
        raise DialdownError(
            f"{path} is not a record of a study: repeat the command that made the folder, which "
            "makes it again."
        )
    rows, of = _rows(folder, "results.json")
    if not rows and of is None and "evaluate" in info.get("stages", {}):
        raise DialdownError(
            f"{folder} has no results.json, though its rows were measured: repeat the command that "
            "made the folder, which makes it again."
        )
    tables = {
        protocol: NeuronTable.from_parquet(folder / name)
        for protocol, name in TABLES.items()
        if (folder / name).exists()
    }
    return Run(folder, info, rows, tables, of)


def _rows(folder: Path, name: str) -> tuple[tuple[Row, ...], int | None]:
    """The rows of a file, or those so far, and how many there will be."""
    paths = [path for path in (folder / so_far(name), folder / name) if path.exists()]
    if not paths:
        return (), None
    path, results = paths[0], read_json(paths[0])
    try:
        for row in results["rows"]:
            parts = map(row.get, ("family", "strength", "control", "control_of"))
            for part in filter(None, (row["intervention"], *parts)):
                whole_text(part, f"The name of a row of {path.name}")
        rows = tuple(map(Row.from_json, results["rows"]))
        of = None if path.name == name else results.get("of", 0)
    except (AttributeError, KeyError, TypeError) as error:
        raise DialdownError(
            f"{path} has a row that cannot be read ({error!r}): repeat the evaluation."
        ) from error
    if not rows and of is None:
        raise DialdownError(
            f"{path} has no rows, so there is nothing to report: repeat the evaluation."
        )
    return rows, of
