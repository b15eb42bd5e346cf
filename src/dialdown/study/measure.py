"""Measuring rows: the plan's interventions on the suite, one file per row, gathered into results
(METHOD §5, §6).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import count
from operator import ne
from typing import Any

from ..evaluation.row import Row, as_row
from ..files import SCHEMA, write_json
from ..models.decoding import Decoder
from ..models.lm import LM
from ..progress import progress, silently
from .context import Workspace
from .notes import note_reading
from .outputs import so_far
from .plan import Planned
from .rows import RowFiles

SAMPLES = 8
SHOWN_EVERY = 25.0  # seconds between two looks at the rows so far


@dataclass(frozen=True)
class Piece:
    """Rows that one process measures one after the other, for the stage that they belong to."""

    stage: str
    rows: tuple[Planned, ...]


@dataclass
class Gathered:
    """The planned rows of a stage, as they come to be measured.

    Attributes:
        work: whose rows.
        files: what is measured of each.
        effects: of each planned row, equal where two do the same.
        rows: the measured ones, by name.
    """

    work: Workspace
    files: RowFiles
    effects: Sequence[tuple[Planned, str]]
    rows: dict[str, Row] = field(default_factory=dict, init=False)
    _written: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)

    @cached_property
    def first(self) -> dict[str, Planned]:
        """By effect the first row that has it: what several controls do alike is measured once."""
        return {effect: planned for planned, effect in reversed(self.effects)}

    def _gather(self) -> None:
        """Take up the rows that were measured since."""
        for planned, effect in self.effects:
            if planned.name in self.rows:
                continue
            measured = self.files.read(self.first[effect])
            if measured is None:
                continue
            # A row that is the same effect as another has its own file all the same, under its own
            # name.
            if self.first[effect] is not planned and self.files.read(planned) is None:
                self.files.write(planned, measured)
            self.rows[planned.name] = as_row(planned.intervention, planned.protocol, measured)

    def write(self, name: str) -> None:
        """Write the rows so far, each beside the untouched model, a control beside its main."""
        self._gather()
        for key, row in self.rows.items():
            base = self.rows.get(f"{row.protocol}-none")
            main = self.rows.get(f"{row.protocol}-{row.control_of}")
            if key not in self._written and base and (main or not row.control_of):
                beside = row.beside(base, self.work.prompts.evaluation, samples=SAMPLES, main=main)
                self._written[key] = beside.to_json()
        keys = [planned.name for planned, _ in self.effects]
        rows = [self._written[key] for key in keys if key in self._written]
        missing = {"of": len(keys)} if len(rows) < len(keys) else {}
        write_json(self.work.folder / name, {"schema": SCHEMA, "rows": rows, **missing})


def measure_rows(work: Workspace, stage: str, planned: Sequence[Planned], name: str) -> list[Row]:
    """Measure what is missing of a stage's planned rows and write all to the file `name`, in order.

    Meanwhile, or where that is the name asked for, `so_far(name)` holds those that are there.
    """
    files = row_files(work, stage)
    gathered = Gathered(work, files, [(row, files.effect(row)) for row in planned])
    first = [row for row, effect in gathered.effects if gathered.first[effect] is row]
    missing = [row for row in first if files.read(row) is None]
    done, total = len(first) - len(missing), len(first)
    progress("evaluating rows", done, total)
    shown, wait = time.monotonic(), 0.0
    try:
        for piece in work.do_all(stage, measure, _pieces(stage, missing)):
            done += len(piece.rows)
            progress("evaluating rows", done, total)
            if done < total and time.monotonic() - shown >= wait:
                gathered.write(so_far(name))
                work.changed()
                shown, wait = time.monotonic(), SHOWN_EVERY
    except KeyboardInterrupt:
        gathered.write(so_far(name))
        raise
    gathered.write(name)
    if name != so_far(name):
        (work.folder / so_far(name)).unlink(missing_ok=True)
    for row in planned:
        work.notes.repeat(files.noted(row))
    rows = [gathered.rows[row.name] for row in planned]
    _note_rows(work, planned, rows, len(first))
    return rows


def _note_rows(
    work: Workspace, planned: Sequence[Planned], rows: Sequence[Row], effects: int
) -> None:
    """Note what the rows' means leave out: prompts, repeated effects, units without a value."""
    counts, total = Counter(row.prompts for row in planned), work.config.evaluation.count
    for prompts, fewer in sorted(counts.items()):
        if prompts < total:
            work.notes.add(
                "{rows:,} rows are measured on the first {prompts:,} of {asked:,} prompts",
                rows=fewer,
                prompts=prompts,
                asked=total,
            )
    if effects < len(planned):
        work.notes.add(
            "{same:,} of {rows:,} rows do exactly what another row does, whose measurement they "
            "share",
            same=len(planned) - effects,
            rows=len(planned),
        )
    for row, measured in zip(planned, rows, strict=True):
        if row.intervention.kind == "none" and row.model is None:
            note_reading(work.notes, measured.units)
    for metric in rows[0].units.metrics if rows else ():
        without = [sum(map(math.isnan, row.units.values[metric])) for row in rows]
        if any(without):
            work.notes.add(
                f"{metric} has no value for {{units:,}} units of {{rows:,}} rows, whose means "
                "leave them out",
                units=sum(without),
                rows=sum(map(bool, without)),
            )


def cut_prompts(work: Workspace, what: str, prompts: Sequence[str]) -> None:
    """Note how many prompts are longer than what is used of them."""
    work.notes.cut(what, work.lm.encode(prompts), work.config.evaluation.max_prompt_tokens)


@silently()
def rounded_otherwise(work: Workspace, used: Collection[int] = ()) -> list[str]:
    """The untouched model's continuations, from batches of another size and so rounded otherwise.

    Args:
        work: whose model and prompts.
        used: how many prompts were decoded at once where its rows were measured; what the setting
            comes to here and now counts too.
    """
    settings = work.config.evaluation
    prompts = work.prompts.evaluation[: settings.count]
    decoder_of = partial(
        Decoder,
        work.lm,
        prompts,
        max_new_tokens=settings.max_new_tokens,
        max_prompt_tokens=settings.max_prompt_tokens,
        share_prefixes=False,
    )
    planned = decoder_of(batch_size=work.batch_size).batch_size
    sizes = {min(size, len(prompts)) for size in (planned, *used)}
    # Half of the smallest is none of them, but for half of 1.
    otherwise = min(sizes) // 2 or next(size for size in count(2) if size not in sizes)
    decoder = decoder_of(batch_size=otherwise)
    return decoder.texts(decoder.run())


def changed(texts: Sequence[str], otherwise: Sequence[str]) -> dict[str, int]:
    """How many continuations of one model another rounding changed (METHOD §9)."""
    return {"changed": sum(map(ne, texts, otherwise)), "prompts": len(texts)}


def _pieces(stage: str, rows: Sequence[Planned]) -> list[Piece]:
    """Rows that generate the same under both protocols stand together: that is decoded once."""
    together: dict[Any, list[Planned]] = {}
    for row in rows:
        same = (
            row.name
            if row.intervention.acts_in_layers
            else (row.model, row.intervention.key, row.prompts)
        )
        together.setdefault(same, []).append(row)
    return [Piece(stage, tuple(same_texts)) for same_texts in together.values()]


def row_files(work: Workspace, stage: str) -> RowFiles:
    """The finished rows of a stage."""
    name = "rows" if stage in ("base", "evaluate") else f"rows-{stage}"
    return RowFiles(work.folder / name, work.ledger.measured_on(), work.ledger.outputs("train"))


def measure(work: Workspace, piece: Piece) -> None:
    """Measure the rows of a piece and write each to its file."""
    files = row_files(work, piece.stage)
    models: dict[str, LM] = {}
    for row in piece.rows:
        if row.model and row.model not in models:
            models[row.model] = work.tuned_model(row.model)
        model = models[row.model] if row.model else None
        with work.noting() as noted:
            evaluator = work.evaluator(row.prompts)
            measured = evaluator.measure(row.intervention, row.protocol, model=model)
            noted.batch(evaluator.decoder.batch_size)
        files.write(row, measured, noted.facts)
