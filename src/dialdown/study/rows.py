"""Finished rows as files, so that an interrupted evaluation goes on where it stopped.

Each file holds what was measured unit by unit: the per-prompt scores behind every mean, for whoever
wants to test further.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.row import Measured
from ..files import fingerprint, read_sealed, write_sealed

if TYPE_CHECKING:
    from .plan import Planned


@dataclass(frozen=True)
class RowFiles:
    """The rows of one evaluation.

    Attributes:
        folder: one JSON file per row.
        evaluation: changes when anything changes that rows are measured on.
        tuned: changes when the tuned model does; None where none is trained here.
    """

    folder: Path
    evaluation: str
    tuned: str | None = None

    def effect(self, planned: Planned) -> str:
        """Equal for two rows that do the same to the same model on the same prompts."""
        model = (planned.model, self.tuned) if planned.model else None
        return fingerprint(
            self.evaluation, planned.protocol, model, planned.prompts, planned.intervention.key
        )

    def read(self, planned: Planned) -> Measured | None:
        """What was measured; None if it was not, or of something else, or is damaged."""
        saved = read_sealed(self._path(planned)) or {}
        return measured_in(saved) if saved.get("effect") == self.effect(planned) else None

    def noted(self, planned: Planned) -> dict[str, Any]:
        """What was noted of a row when it was measured (see `notes.StageNotes.facts`)."""
        saved = read_sealed(self._path(planned)) or {}
        noted: dict[str, Any] = saved.get("noted", {})
        return noted

    def write(
        self, planned: Planned, measured: Measured, noted: Mapping[str, Any] | None = None
    ) -> None:
        """Keep a row, and what was noted of it."""
        about = {"effect": self.effect(planned), "noted": noted or {}}
        write_sealed(self._path(planned), {**about, **measured.to_json()})

    def _path(self, planned: Planned) -> Path:
        return self.folder / f"{planned.name}.json"


def measured_in(saved: Mapping[str, Any]) -> Measured:
    """What was measured, of the content of a row's file."""
    return Measured.from_json({k: v for k, v in saved.items() if k not in ("effect", "noted")})
