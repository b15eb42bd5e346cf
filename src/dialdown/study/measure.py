"""Measuring rows: the plan's interventions on the suite, one file per row, gathered into results
(METHOD §5, §6).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import ne
from typing import Any

from ..evaluation.row import Row, as_row
from ..files import SCHEMA, write_json
from ..models.decoding import Decoder
from ..models.lm import LM
from .context import Workspace
from .plan import Planned
from .rows import RowFiles

SAMPLES = 8


@dataclass(frozen=True)
class Piece:
    """Rows that one process measures one after the other, for the stage that they belong to."""

    stage: str
    rows: tuple[Planned, ...]


def measure_rows(work: Workspace, stage: str, planned: Sequence[Planned]) -> list[Row]:
    """Measure what is missing of the planned rows of a stage; all of them, in the order planned."""
    files = row_files(work, stage)
    # Some controls of different edits are the same effect, which is measured once.
    first: dict[str, Planned] = {}
    for one in planned:
        first.setdefault(files.effect(one), one)
    missing = [one for one in first.values() if files.read(one) is None]
    done, total = len(first) - len(missing), len(first)
    work.progress("evaluating", done, total)
    for piece in work.do_all(measure, _pieces(stage, missing)):
        done += len(piece.rows)
        work.progress(f"evaluating, {piece.rows[-1].name} measured", done, total)
    rows = []
    for one in planned:
        measured = files.read(first[files.effect(one)])
        assert measured is not None
        # A row that is the same effect as another has its own file all the same, under its own
        # name.
        if first[files.effect(one)] is not one and files.read(one) is None:
            files.write(one, measured)
        rows.append(as_row(one.intervention, one.protocol, measured))
    _note_rows(work, planned, rows, len(first))
    return rows


def _note_rows(
    work: Workspace, planned: Sequence[Planned], rows: Sequence[Row], effects: int
) -> None:
    """What the rows' means leave out: prompts, effects that were measured already, and units
    without a value.
    """
    counts, asked = Counter(one.prompts for one in planned), work.config.evaluation.count
    for prompts, fewer in sorted(counts.items()):
        if prompts < asked:
            work.notes.add(
                "{rows:,} rows are measured on the first {prompts:,} of {asked:,} prompts",
                rows=fewer,
                prompts=prompts,
                asked=asked,
            )
    if effects < len(planned):
        work.notes.add(
            "{same:,} of {rows:,} rows do exactly what another row does, whose measurement they "
            "share",
            same=len(planned) - effects,
            rows=len(planned),
        )
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


def rounded_otherwise(work: Workspace) -> list[str]:
    """The untouched model's continuations, decoded in batches of about half the size: its sums are
    rounded otherwise.
    """
    settings, prompts = (
        work.config.evaluation,
        work.prompts.evaluation[: work.config.evaluation.count],
    )
    decoder = Decoder(
        work.lm,
        prompts,
        max_new_tokens=settings.max_new_tokens,
        max_prompt_tokens=settings.max_prompt_tokens,
        batch_size=max(1, min(settings.batch_size, len(prompts)) // 2),
        share_prefixes=False,
    )
    return decoder.texts(decoder.run())


def changed(texts: Sequence[str], otherwise: Sequence[str]) -> dict[str, int]:
    """How many continuations of one model another rounding changed (METHOD §9)."""
    return {"changed": sum(map(ne, texts, otherwise)), "prompts": len(texts)}


def _pieces(stage: str, rows: Sequence[Planned]) -> list[Piece]:
    """What moves no neuron generates the same under both protocols: measured one after the other,
    it is decoded once.
    """
    together: dict[Any, list[Planned]] = {}
    for one in rows:
        same = (
            one.name
            if one.intervention.moves_neurons
            else (one.model, one.intervention.key, one.prompts)
        )
        together.setdefault(same, []).append(one)
    return [Piece(stage, tuple(some)) for some in together.values()]


def row_files(work: Workspace, stage: str) -> RowFiles:
    """The finished rows of a stage."""
    name = "rows" if stage in ("base", "evaluate") else f"rows-{stage}"
    return RowFiles(work.folder / name, work.ledger.measured_on(), work.ledger.outputs("train"))


def measure(work: Workspace, piece: Piece) -> None:
    """Measure the rows of a piece and write each to its file."""
    files = row_files(work, piece.stage)
    models: dict[str, LM] = {}
    for one in piece.rows:
        if one.model and one.model not in models:
            models[one.model] = work.tuned_model(one.model)
        model = models[one.model] if one.model else None
        evaluator = work.evaluator(one.prompts)
        files.write(one, evaluator.measure(one.intervention, one.protocol, model=model))


def write_results(work: Workspace, name: str, rows: Sequence[Row]) -> None:
    """Write rows as JSON, each beside the untouched model, and a control beside what it is a
    control of.
    """
    named = {(row.protocol, row.intervention): row for row in rows}
    written = [
        row.beside(
            named[row.protocol, "none"],
            work.prompts.evaluation,
            samples=SAMPLES,
            main=named[row.protocol, row.control_of] if row.control_of else None,
        ).to_json()
        for row in rows
    ]
    write_json(work.folder / name, {"schema": SCHEMA, "rows": written})
