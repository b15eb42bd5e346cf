"""The rows of a study as points of the trade-off, and as a list beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from ..evaluation.bootstrap import Estimate
from ..evaluation.row import Row
from ..models.protocol import Protocol
from ..report.chart_style import Chart
from ..report.charts import Point, tradeoff
from ..report.figures import point_of
from ..report.names import short
from ..report.run import Run

FRONT = "front"
MEASURED_ON = {
    "strict": "strict: the rows of the study",
    "paper": "paper: the rows of the study",
    FRONT: "front: every family at several strengths",
}


def sets(run: Run | None) -> list[str]:
    """Which sets of rows a study has: a protocol each, and `front`."""
    if run is None:
        return []
    return [*run.protocols, *([FRONT] if run.front else [])]


def rows_of(run: Run, which: str) -> list[Row]:
    """The rows of a set that are no controls and have a place in the trade-off."""
    if which == FRONT:
        rows: Sequence[Row] = run.front
    else:
        protocol: Any = which
        measured = (run.result(name, protocol) for name in run.names())
        rows = [row for row in measured if row is not None]
    return [row for row in rows if _point(row)]


def row_name(row: Row) -> str:
    """What a row's saved edit is called (see `edits.SavedEdit`)."""
    return f"{row.protocol}-{row.intervention}"


def _point(row: Row) -> Point | None:
    point = point_of(row)
    if point is None or not _is_number(row.strength):
        return point
    return replace(point, strength=float(row.strength))


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def chart(run: Run, which: str) -> Chart | None:
    """The trade-off of a set of rows; None where it has none."""
    points = [point for row in rows_of(run, which) if (point := _point(row))]
    protocol: Protocol = "paper" if which == "paper" else "strict"
    return tradeoff(points, protocol, concept=run.concept) if points else None


def listed(run: Run, which: str) -> pl.DataFrame:
    """The same as a list: `intervention`, the concept's mean score, `log-perplexity` and `KL`, with
    intervals.
    """
    rows = rows_of(run, which)
    return pl.DataFrame({
        "intervention": [short(row) for row in rows],
        run.concept: [_interval(row.metrics.get("toxicity")) for row in rows],
        "change of log-perplexity": [_interval(row.change.get("log_ppl")) for row in rows],
        "KL": [_interval(row.metrics.get("kl")) for row in rows],
    })  # fmt: skip


def named(run: Run, which: str, name: str) -> Row | None:
    """The row that a chart or a list calls so."""
    return next((row for row in rows_of(run, which) if short(row) == name), None)


def _interval(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate:.3f}"
