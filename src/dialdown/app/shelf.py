"""What a source has on its shelf: its edits, loaded once, its rows and its tables."""

from __future__ import annotations

from functools import cache, lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from ..errors import DialdownError, nearest
from ..files import read_sealed
from ..neurons.table import NeuronTable, neuron_table
from ..report.findings import chosen_edit
from ..report.run import TABLES, Run, load
from ..study.outputs import run_record
from .desk import REMEMBERED, Act
from .edits import TO_USE, SavedEdit, saved_edits
from .neurons import neuron_frame
from .source import Source, workspace

if TYPE_CHECKING:
    from ..interventions.intervention import Intervention
    from ..models.lm import LM
    from .loading import Models


class Shelf:
    """What a source has, read when it is asked for and read anew by `reload`."""

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
            if (study := self.source.study) is not None:
                self.run = load(study) if (study / "results.json").exists() else None
                tables = (study / name for name in TABLES.values())
                saved = next((path for path in tables if path.exists()), None)
                self.table = NeuronTable.load(saved) if saved else None
        except DialdownError as error:
            self.problem = str(error)
        labels = self.run.labels if self.run else {}
        self.edits = {edit.name: edit for edit in saved_edits(self.source, labels)}

    def _setting(self, name: str) -> str:
        record = run_record(self.source.study) if self.source.study else None
        return str((record or {"config": {}})["config"].get(name) or "")

    @property
    def concept(self) -> str:
        """What scores are of."""
        return self._setting("concept") or "toxicity"

    @property
    def tuned(self) -> str:
        """What the tuned model is: the one the study was given, or its own."""
        return self._setting("tuned") or "trained by the study"

    @property
    def choices(self) -> list[tuple[str, str]]:
        """(label, name) of every edit."""
        return [(edit.label, edit.name) for edit in self.edits.values()]

    @property
    def first(self) -> str | None:
        """The edit that one would try first: what was made to be used, or the one that the report's
        sentences name.
        """
        chosen = chosen_edit(self.run) if self.run else None
        name = f"{chosen.protocol}-{chosen.intervention}" if chosen else ""
        made_for_use = (edit for edit in self.edits if edit in TO_USE)
        return next(made_for_use, name if name in self.edits else next(iter(self.edits), None))

    def label(self, name: str) -> str:
        """What an edit is called."""
        return self.edits[name].label if name in self.edits else name

    def edit(self, name: str) -> Intervention:
        """An edit by its name (DialdownError where there is none, or its file is damaged)."""
        return self._load(self._saved(name))

    def _saved(self, name: str) -> SavedEdit:
        if name not in self.edits:
            raise DialdownError(f"There is no edit {name!r} here: {nearest(name, self.edits)}")
        return self.edits[name]

    def act(self, name: str, strength: float) -> Act:
        """An edit as it acts at a strength; see `edit` for the errors."""
        return self._at(self._saved(name), strength)

    def texts(self, count: int) -> list[str]:
        """The first prompts of the study, each with what the base went on to write where that was
        measured; none without a study.
        """
        if (study := self.source.study) is None:
            return []
        row = read_sealed(study / "rows" / "strict-none.json")
        continuations = row["texts"] if row else []
        prompts = workspace(study).prompts.evaluation[:count]
        pairs = zip_longest(prompts, continuations[: len(prompts)], fillvalue="")
        return [prompt + continuation for prompt, continuation in pairs]

    def frame(self, models: Models, edit: str | None) -> pl.DataFrame:
        """The neuron table with the gains of an edit, where there are any."""
        table, study = self.table, self.source.study
        if table is None and study is not None:
            table = untuned_table(study, models.base)
        return neuron_frame(table, self.edit(edit) if edit in self.edits and edit else None)


def untuned_table(study: Path, lm: LM) -> NeuronTable | None:
    """The table without a tuned model, from the direction and the means that `detox` leaves; None
    where they are not there.
    """
    from ..neurons.activations import NeuronMeans
    from ..neurons.directions import Direction

    probe, means = study / "direction-probe.safetensors", study / "means-training.safetensors"
    if not (probe.exists() and means.exists()):
        return None
    return neuron_table(lm, Direction.load(probe), NeuronMeans.load(means))
