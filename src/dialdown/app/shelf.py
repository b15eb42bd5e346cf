"""What a source has on its shelf: its edits, loaded once, its rows and its tables."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING

import polars as pl

from ..errors import DialdownError, nearest
from ..neurons.table import NeuronTable
from ..report.run import Run
from .desk import REMEMBERED, Act
from .edits import SavedEdit, saved_edits
from .neurons import neuron_frame
from .source import Source, run_record
from .study import measured, read_texts, saved_table, untuned_table, workspace

if TYPE_CHECKING:
    from ..interventions.intervention import Intervention
    from .loading import Models


class Shelf:
    """What a source has, read when it is asked for and read anew by `reload`.

    Args:
        source: what the app was opened on.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._load = cache(SavedEdit.load)
        # The same act, not an equal one: by it the desk knows a reply that it has given.
        self._at = lru_cache(REMEMBERED)(
            lambda saved, strength: Act(self._load(saved).at(strength), saved.positions)
        )
        self.reload()

    def reload(self) -> None:
        """Look again: a run that is still going has more by now."""
        self.problem = ""
        self.run: Run | None = None
        self.table: NeuronTable | None = None
        try:
            self.run = measured(self.source.study)
            self.table = saved_table(self.source.study)
        except DialdownError as error:
            self.problem = str(error)
        labels = self.run.labels if self.run else {}
        self.edits = {edit.name: edit for edit in saved_edits(self.source, labels)}

    @property
    def concept(self) -> str:
        """What scores are of."""
        record = run_record(self.source.study) if self.source.study else None
        return str((record or {"config": {}})["config"].get("concept") or "toxicity")

    @property
    def tuned(self) -> str:
        """What the tuned model is: the one the study was given, or its own."""
        record = run_record(self.source.study) if self.source.study else None
        given = (record or {"config": {}})["config"].get("tuned")
        return str(given) if given else "trained by the study"

    @property
    def choices(self) -> list[tuple[str, str]]:
        """(label, name) of every edit."""
        return [(edit.label, edit.name) for edit in self.edits.values()]

    def label(self, name: str) -> str:
        """What an edit is called."""
        return self.edits[name].label if name in self.edits else name

    def edit(self, name: str) -> Intervention:
        """An edit by its name.

        Raises:
            DialdownError: there is none, or its file is gone or damaged.
        """
        return self._load(self._saved(name))

    def _saved(self, name: str) -> SavedEdit:
        if name not in self.edits:
            raise DialdownError(f"There is no edit {name!r} here: {nearest(name, self.edits)}")
        return self.edits[name]

    def act(self, name: str, strength: float) -> Act:
        """An edit as it acts at a strength; see `edit` for the errors."""
        return self._at(self._saved(name), strength)

    def texts(self, count: int) -> list[str]:
        """The first prompts of the study with what the base went on to write; none without one."""
        study = self.source.study
        return read_texts(study, workspace(study).prompts.evaluation, count) if study else []

    def frame(self, models: Models, edit: str | None) -> pl.DataFrame:
        """The neuron table with the gains of an edit, where there are any."""
        table = self.table or untuned_table(self.source.study, models.base)
        return neuron_frame(table, self.edit(edit) if edit in self.edits and edit else None)
