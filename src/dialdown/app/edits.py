"""The edits that a source has saved, and how each is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.protocol import Protocol
from ..report.run import PROTOCOLS
from ..study.stage import EDIT, FRONT_EDITS, LABELS, LABELS_RANK_ONE, STEP, folder_of
from ..training.settings import GAINS_FILE, RANK_ONE_FILE
from .source import Source, places_of_delta

if TYPE_CHECKING:
    from ..interventions.intervention import Intervention
    from ..models.hooks import Positions

DELTA = "the edit of this folder"
# Name, what it is called, and its file in a study's folder.
KEPT = (
    ("edit", "what detox made, at the strength found", EDIT),
    ("gains", "neuron gains, as trained", f"gains/{GAINS_FILE}"),
    ("rank_one", "one direction per layer, as trained", f"{folder_of('rank_one')}/{RANK_ONE_FILE}"),
    (
        "rank_one_attention",
        "one direction per layer of attention, as trained",
        f"{folder_of('rank_one_attention')}/{RANK_ONE_FILE}",
    ),
    ("step", "one step, from pairs", STEP),
    ("labels", "one step, from labels", LABELS),
    ("labels_rank_one", "one direction per layer, from labels", LABELS_RANK_ONE),
)
TO_USE = {"delta", *(name for name, _, _ in KEPT)}
"""What was made to be used, by name."""


@dataclass(frozen=True)
class SavedEdit:
    """An edit that can be loaded from its file, or from the folder of a delta.

    Attributes:
        name: unique in its source: `gains`, or `strict-edit_probe_set`.
        label: what it is called.
        positions: where it acts in each forward pass while generating (METHOD §5).
        written: when its files were, and how long they are: an edit that is made anew is another.
    """

    name: str
    label: str
    path: Path
    positions: Positions = "all"
    written: tuple[tuple[int, int], ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "written", tuple(map(_written, _files(self.path))))

    def load(self) -> Intervention:
        """The edit itself (DialdownError where its file is gone or damaged)."""
        from ..exporting.delta import load_delta
        from ..interventions.intervention import Intervention

        return load_delta(self.path).edit if self.path.is_dir() else Intervention.load(self.path)


def _files(path: Path) -> list[Path]:
    """The files of an edit, or of the delta in a folder."""
    if not path.is_dir():
        return [path]
    return sorted(file for place in places_of_delta(path) for file in place.glob("edit.*"))


def _written(file: Path) -> tuple[int, int]:
    try:
        facts = file.stat()
    except FileNotFoundError:  # whoever writes it anew has just removed it
        return 0, 0
    return facts.st_mtime_ns, facts.st_size


def saved_edits(source: Source, labels: Mapping[str, str]) -> list[SavedEdit]:
    """Every edit of a source, what was made to be used first, then a study's interventions in the
    order of their `labels`, by name.
    """
    edits: list[SavedEdit] = []
    if source.kind == "edit" and source.folder is not None:
        edits.append(SavedEdit("delta", DELTA, source.folder))
    if (study := source.study) is not None:
        edits += [
            SavedEdit(name, label, study / place)
            for name, label, place in KEPT
            if (study / place).is_file()
        ]
        for protocol in PROTOCOLS:
            edits += _of_rows(study, protocol, labels)
    return edits


def _of_rows(study: Path, protocol: Protocol, labels: Mapping[str, str]) -> list[SavedEdit]:
    positions: Positions = "all" if protocol == "strict" else "last"
    order = {f"{protocol}-{name}": place for place, name in enumerate(labels)}
    edits = [
        SavedEdit(
            path.stem,
            f"{labels.get(path.stem.removeprefix(f'{protocol}-'), path.stem)} · {protocol}",
            path,
            positions,
        )
        for folder in ("interventions", FRONT_EDITS)
        for path in (study / folder).glob(f"{protocol}-*.safetensors")
    ]
    return sorted(edits, key=lambda edit: (order.get(edit.name, len(order)), edit.name))
