"""The edits that a source has saved, and how each is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.protocol import Protocol
from ..report.run import PROTOCOLS
from ..study.outputs import EDIT, FRONT_EDITS, STEP
from ..training.settings import GAINS_FILE, RANK_ONE_FILE
from .source import Source

if TYPE_CHECKING:
    from ..interventions.intervention import Intervention
    from ..models.hooks import Positions

KEPT = {
    "edit": EDIT,
    "gains": f"gains/{GAINS_FILE}",
    "rank_one": f"rank-one/{RANK_ONE_FILE}",
    "step": STEP,
}
LABELS = {
    "delta": "the edit of this folder",
    "edit": "What detox made, at the strength found",
    "gains": "Neuron gains, as trained",
    "rank_one": "One direction per layer, as trained",
    "step": "One step, no training",
}
ENDING = ".safetensors"


@dataclass(frozen=True)
class SavedEdit:
    """An edit that can be loaded.

    Attributes:
        name: unique in its source: `gains`, or `strict-edit_probe_set`.
        label: what it is called.
        path: its file, or the folder of a delta.
        positions: where it acts in each forward pass while generating (METHOD §5).
    """

    name: str
    label: str
    path: Path
    positions: Positions = "all"

    def load(self) -> Intervention:
        """The edit itself.

        Raises:
            DialdownError: its file is gone or damaged.
        """
        from ..exporting.delta import load_delta
        from ..interventions.intervention import Intervention

        return load_delta(self.path).edit if self.path.is_dir() else Intervention.load(self.path)


def saved_edits(source: Source, labels: Mapping[str, str]) -> list[SavedEdit]:
    """Every edit of a source, what was made to be used first.

    Args:
        source: what the app was opened on.
        labels: of a study's interventions by name; in their order where they are there.
    """
    edits: list[SavedEdit] = []
    if source.kind == "edit" and source.folder is not None:
        edits.append(SavedEdit("delta", LABELS["delta"], source.folder))
    if (study := source.study) is not None:
        for name, place in KEPT.items():
            if (study / place).is_file():
                edits.append(SavedEdit(name, LABELS[name], study / place))
        for protocol in PROTOCOLS:
            edits += sorted(
                _of_rows(study, protocol, labels), key=lambda edit: _place(edit, protocol, labels)
            )
    return edits


def _of_rows(study: Path, protocol: Protocol, labels: Mapping[str, str]) -> Iterator[SavedEdit]:
    for folder in ("interventions", FRONT_EDITS):
        for path in (study / folder).glob(f"{protocol}-*{ENDING}"):
            name = path.name.removesuffix(ENDING)
            label = labels.get(name.removeprefix(f"{protocol}-"), name)
            positions: Positions = "all" if protocol == "strict" else "last"
            yield SavedEdit(name, f"{label} · {protocol}", path, positions)


def _place(edit: SavedEdit, protocol: Protocol, labels: Mapping[str, str]) -> tuple[int, str]:
    known = {name: place for place, name in enumerate(labels)}
    return known.get(edit.name.removeprefix(f"{protocol}-"), len(known)), edit.name
