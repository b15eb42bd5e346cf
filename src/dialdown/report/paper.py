"""The paper's tables of a run, written into its folder and as the report shows them (METHOD §9)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from markupsafe import Markup, escape
from pydantic import ValidationError

from ..data.csv_tables import read_csv, write_csv
from ..errors import DialdownError
from ..evaluation.bootstrap import agreement
from ..files import read_json
from ..study.config import Config
from . import analysis
from .run import Run
from .tables import TITLES
from .text import number

SHOWN_TOKENS = 10
AGREEMENT = "scorers-agreement"
# What the paper has no number for: file, name in its place, title.
FURTHER = {
    AGREEMENT: ("Scorers", "How far the scorers agree on the untouched model's continuations"),
    "gains-by-group": ("Gains", (
        "Neuron gains: what they do in each of the tuning-free groups, and who follows the "
        "four-group rule"
    )),
    "gains-top-neurons": ("Gains", (
        "Neuron gains: the neurons whose gain moves the residual stream most, and what they "
        "write"
    )),
}  # fmt: skip


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables on the page: its number, what it shows, and its cells as HTML."""

    number: str
    title: str
    file: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Markup]]


def write_tables(run: Run) -> None:
    """Write the tables that need the measured rows, beside those that the stage `neurons` wrote."""
    try:
        config = Config(**(run.info.get("config") or {}))
    except ValidationError as error:
        raise DialdownError(
            f"{run.folder / 'run.json'} holds settings that this version does not know "
            f"({error.errors()[0]['loc']}): make the report with the version that ran the study."
        ) from error
    probes: dict[str, Any] = {
        protocol: run.stage("probe").get(protocol, {}) for protocol in config.protocols
    }
    rows, front = (_rows(run.folder / name) for name in ("results.json", "front.json"))
    frames = analysis.of_rows(rows, front, config, probes)
    scored = _scored(run)
    if len(scored) > 1:
        frames[AGREEMENT] = agreement(scored)
    write_csv(frames, run.folder / "tables")


def _scored(run: Run) -> dict[str, list[float]]:
    """What each scorer says of the untouched model's continuations: one text a prompt, so that they
    are independent.
    """
    path = run.folder / "rows" / f"{run.protocols[0]}-none.json"
    found: dict[str, list[float]] = read_json(path)["values"] if path.exists() else {}
    return {
        name.removeprefix("toxicity/"): ours
        for name, ours in found.items()
        if name.startswith("toxicity/")
    }


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_json(path)["rows"] if path.exists() else []
    return rows


def paper_tables(run: Run) -> list[PaperTable]:
    """The tables there are, in the paper's order."""
    found = []
    for stem, title in {**TITLES, **{stem: title for stem, (_, title) in FURTHER.items()}}.items():
        path = run.folder / "tables" / f"{stem}.csv"
        if path.exists():
            frame = read_csv(path)
            columns, rows = (
                _joined_tokens(frame) if "token" in frame.columns else _joined_intervals(frame)
            )
            if rows:
                found.append(PaperTable(_number(stem), title, f"tables/{stem}.csv", columns, rows))
    return found


def _number(stem: str) -> str:
    if stem in FURTHER:
        return FURTHER[stem][0]
    kind, place, *more = stem.split("-")
    return (
        f"{kind.capitalize()} {'.'.join([place, *[one for one in more if one.isdigit()]]).upper()}"
    )


def _joined_tokens(frame: pl.DataFrame) -> tuple[list[str], list[list[Markup]]]:
    """One row per vector, its tokens side by side, those of the concept marked."""
    keys = [name for name in frame.columns if name not in ("rank", "token", "logit", "toxic")]
    rows = []
    for values, group in frame.group_by(keys, maintain_order=True):
        tokens = [
            Markup("<code{}>{}</code>").format(
                Markup(' class="concept"') if toxic else "", token or ""
            )
            for token, toxic in group.select("token", "toxic").head(SHOWN_TOKENS).iter_rows()
        ]
        rows.append([*map(_cell, values), Markup(" ").join(tokens)])
    return [*keys, "tokens"], rows


def _joined_intervals(frame: pl.DataFrame) -> tuple[list[str], list[list[Markup]]]:
    """A mean, its interval and its n in one cell."""
    parts = re.compile(r"(.+)_(low|high|n)")
    columns = [
        name
        for name in frame.columns
        if not ((found := parts.fullmatch(name)) and found[1] in frame.columns)
    ]
    rows = []
    for row in frame.iter_rows(named=True):
        cells = []
        for name in columns:
            low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
            whole = low is not None and high is not None
            count = row.get(f"{name}_n")
            beside = (
                f"[{_cell(low)}, {_cell(high)}]" + ("" if count is None else f" n = {count:,}")
                if whole
                else ""
            )
            cells.append(_cell(row[name]) + (Markup(f" <small>{beside}</small>") if whole else ""))
        rows.append(cells)
    return columns, rows


def _cell(value: object) -> Markup:
    if value is None or value == "":
        return Markup("·")
    if isinstance(value, bool):
        return Markup("yes" if value else "no")
    if isinstance(value, float):
        small = 0 < abs(value) < 5e-4
        return Markup(f"{value:.1e}".replace("-", "−") if small else number(value))
    return Markup(f"{value:,}") if isinstance(value, int) else escape(value)
