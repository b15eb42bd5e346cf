"""How a frame stands on the page: one row of cells per row of the frame, in the one way of all.

A mean, its interval (`NAME_low`, `NAME_high`) and its n share a cell; an intervention is called by
its label; a vector's tokens stand side by side. The published figures of a model
(`published_MODEL_NAME`) share a cell at the right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from markupsafe import Markup

from ..evaluation.row import METRIC_NAMES
from ..study.published import NAMES
from .names import UNITS
from .text import number, span

SHOWN_TOKENS = 10
TOKEN_COLUMNS = ("rank", "token", "logit", "toxic")
# What stands below an intervention's label.
FACTS = {"neurons": "{:,} neurons", "alpha": "α = {:g}", "beta": "β = {:g}"}
# Said by the label; and what degenerate continuations say as well stands in the file.
LEFT_OUT = ("control_of", "kind", "repetition")
# White space in a token is seen.
SEEN = str.maketrans({" ": "␣", "\n": "↵", "\r": "↵", "\t": "⇥", "\u00a0": "⍽"})


@dataclass(frozen=True)
class Cell:
    """What stands in a cell, the interval beside it, a note below in small print, and whether it
    was published.
    """

    text: str = ""
    interval: str = ""
    note: str = ""
    published: bool = False


@dataclass(frozen=True)
class Grid:
    """A frame on the page: the title and note of each column; the protocol of each row ("" where it
    has none), and its cells.
    """

    columns: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def grid(
    frame: pl.DataFrame,
    *,
    titles: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    unit: str = "prompts",
) -> Grid:
    """A frame as the page shows it: `titles` replace names of columns and `labels` those of
    interventions; `unit` is what the n of a mean counts where the metric does not say.
    """
    if "token" in frame.columns:
        frame = _side_by_side(frame)
    columns = [column for column in frame.columns if not _beside(column, frame)]
    titles = {**METRIC_NAMES, **(titles or {})}
    heads = [
        (titles.get(column, column.replace("_", " ")), _counted(column, frame, unit))
        for column in columns
    ]
    stated = {name: known for model, name in NAMES.items() if (known := _stated(frame, model))}
    heads += [
        (
            name,
            " · ".join(
                ["published", *(titles.get(kind, kind.replace("_", " ")) for kind in kinds if kind)]
            ),
        )
        for name, kinds in stated.items()
    ]
    most = {
        column: frame[f"{column}_n"].max() for column in columns if f"{column}_n" in frame.columns
    }
    rows = [
        (
            row.get("protocol") or "",
            [
                *(_cell(column, row, most.get(column), labels or {}) for column in columns),
                *(_published([row[name] for name in kinds.values()]) for kinds in stated.values()),
            ],
        )
        for row in frame.iter_rows(named=True)
    ]
    return Grid(heads, rows)


def _stated(frame: pl.DataFrame, model: str) -> dict[str, str]:
    """What the paper has of a model in a table: kind to column."""
    start = f"published_{model}"
    return {
        column.removeprefix(start).removeprefix("_"): column
        for column in frame.columns
        if column.startswith(start) and frame[column].null_count() < frame.height
    }


def _published(figures: Sequence[Any]) -> Cell:
    text = " · ".join(_said(figure, "g") for figure in figures if figure is not None)
    return Cell(text, published=True)


def _side_by_side(frame: pl.DataFrame) -> pl.DataFrame:
    """One row per vector, its tokens in one cell, those of the concept marked."""
    keys = [name for name in frame.columns if name not in TOKEN_COLUMNS]
    marked = pl.struct("token", "toxic").head(SHOWN_TOKENS).alias("tokens")
    return frame.group_by(keys, maintain_order=True).agg(marked)


def _beside(column: str, frame: pl.DataFrame) -> bool:
    """Whether a column stands in the cell of another one, or has nothing to say."""
    start, _, end = column.rpartition("_")
    if column.startswith("published_") or (end in ("low", "high", "n") and start in frame.columns):
        return True
    return "intervention" in frame.columns and column in (*FACTS, *LEFT_OUT)


def _counted(column: str, frame: pl.DataFrame, unit: str) -> str:
    """What the means of a column are over."""
    if f"{column}_n" not in frame.columns or frame[f"{column}_n"].null_count() == frame.height:
        return ""
    return f"n = {span({*frame[f'{column}_n'].drop_nulls()})} {UNITS.get(column, unit)}"


def _cell(column: str, row: Mapping[str, Any], most: Any, labels: Mapping[str, str]) -> Cell:
    value = row[column]
    if column == "intervention" and value is not None:
        facts = [form.format(row[name]) for name, form in FACTS.items() if row.get(name)]
        return Cell(labels.get(value, value), note=" · ".join(facts))
    if column == "tokens":
        return Cell(Markup(" ").join(map(_token, value)))
    signed = column.endswith(("change", "difference"))
    low, high, count = (row.get(f"{column}_{end}") for end in ("low", "high", "n"))
    interval = "" if low is None else f"[{_said(low, signed=signed)}, {_said(high, signed=signed)}]"
    fewer = f"n = {count:,}" if count is not None and count < most else ""
    return Cell(_said(value, signed=signed), interval, fewer)


def _token(token: Mapping[str, Any]) -> Markup:
    mark = Markup(' class="concept"') if token["toxic"] else ""
    return Markup("<code{}>{}</code>").format(mark, (token["token"] or "").translate(SEEN))


def _said(value: object, how: str = "", *, signed: bool = False) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if how:
            return format(value, how)
        small = 0 < abs(value) < 5e-4 and not signed
        return f"{value:.1e}".replace("-", "−") if small else number(value, signed=signed)
    return f"{value:,}"
