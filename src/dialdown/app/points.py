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
from ..report.names import label
from ..report.run import Run

FRONT = "front"
MEASURED_ON = {
    "strict": "strict: the rows of the study",
    "paper": "paper: the rows of the study",
    FRONT: "front: every family at several strengths",
}


def sets(run: Run | None) -> list[str]:
    """Which sets of rows a study has: a protocol each, and `front`."""
    return [*run.protocols, *([FRONT] if run.front else [])] if run else []


def placed(run: Run, which: str) -> list[tuple[Row, Point]]:
    """The rows of a set that are not controls, each with its place in the trade-off."""
    protocol: Any = which
    measured: Sequence[Row | None] = [run.result(name, protocol) for name in run.names()]
    return [
        (row, replace(point, strength=float(row.strength) if _is_number(row.strength) else None))
        for row in (run.front if which == FRONT else measured)
        if row and (point := point_of(row))
    ]


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def chart(run: Run, which: str) -> Chart | None:
    """The trade-off of a set of rows; None where it has none."""
    points = [point for _, point in placed(run, which)]
    protocol: Protocol = "paper" if which == "paper" else "strict"
    return tradeoff(points, protocol, concept=run.concept) if points else None


def listed(run: Run, which: str) -> pl.DataFrame:
    """The same as a list: `intervention`, the concept's mean score, `log-perplexity` and `KL`, with
    intervals.
    """
    rows = [row for row, _ in placed(run, which)]
    return pl.DataFrame({
        "intervention": [label(row) for row in rows],
        run.concept: [_interval(row.metrics.get("toxicity")) for row in rows],
        "change of log-perplexity": [_interval(row.change.get("log_ppl")) for row in rows],
        "KL": [_interval(row.metrics.get("kl")) for row in rows],
    })  # fmt: skip


def named(run: Run, which: str, name: str) -> Row | None:
    """The row that a chart or a list calls so."""
    return next((row for row, _ in placed(run, which) if label(row) == name), None)


def _interval(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate:.3f}"
