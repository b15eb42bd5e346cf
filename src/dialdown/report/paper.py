"""The paper's tables and figures of a run: written into its folder, and as the report shows them
(METHOD §9).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from pydantic import ValidationError

from ..data.csv_tables import read_csv, write_csv
from ..errors import DialdownError
from ..evaluation.bootstrap import Estimate, agreement
from ..files import read_json
from ..neurons.table import NeuronTable
from ..study.config import Config
from . import analysis, interactive, paper_figures
from .front import FrontPoint
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
# What a name in front.json is, up to its strength; what is not here stands in tables 12 and 19
# only.
ON_THE_FRONT = {
    "none": "none",
    "dpo": "dpo",
    "steer_probe": "steer",
    "steer_random": "random_direction",
    "patch_four_groups_shift": "patch_shift",
    "gains": "gains",
    "gains_kept": "gains_kept",
    "gains_random_neurons": "random_neurons_gains",
    "step": "step",
    **{f"edit_{probe}_{kind}": f"edit_{probe}_{kind}" for probe in ("probe", (
        "probe_free"
    )) for kind in ("set", "shift", "scale")},
    **{f"edit_random_neurons_{kind}": f"random_neurons_{kind}" for kind in ("set", "shift", (
        "scale"
    ))},
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


def neuron_figures(run: Run) -> Iterator[tuple[str, str, Figure]]:
    """Figures 1 to 8 of each protocol that was compared: file name, caption, figure."""
    for protocol, table in run.tables.items():
        if not table.compared:
            continue
        for name, caption, figure in of_table(table, _decoded(run, table)):
            yield f"{name}-{protocol}", f"{caption} ({protocol}).", figure


def of_table(
    table: NeuronTable, decoded: Mapping[tuple[int, int], str]
) -> Iterator[tuple[str, str, Figure]]:
    """Figures 1 to 8 of one table: file name, caption, figure; `decoded` are the tokens of some
    neurons.
    """
    ours = paper_figures
    yield (
        "figure-1-layer-effects",
        "Figures 1 and 5: projection changes of the decreasing and the increasing neurons, summed "
        "over the layers",
        ours.figure_1_layer_effects(table),
    )
    yield (
        "figure-2a-group-contribution",
        "Figures 2a and 6a: what each group contributes to the reduction",
        ours.figure_2a_group_contribution(table),
    )
    yield (
        "figure-2b-ranked-share",
        "Figures 2b and 6b: share of each group among the neurons that reduce most",
        ours.figure_2b_ranked_share(table),
    )
    yield (
        "figure-2c-group-shift",
        "Figures 2c and 6c: activation shift by group, in % of the activation before tuning",
        ours.figure_2c_group_shift(table),
    )
    yield (
        "figure-3-top-aligned",
        "Figure 3: mean activations of the neurons most aligned with the direction, before and "
        "after tuning",
        ours.figure_3_top_aligned(table, count=min(100, table.arrow.num_rows)),
    )
    yield (
        "figure-4-shift-distribution",
        "Figure 4: distribution of the activation shifts, in % of the activation before tuning",
        ours.figure_4_shift_distribution(table),
    )
    yield (
        "figure-7-lower-ranks",
        "Figure 7: the reduction over the ranks of the neurons, and what some of them write",
        ours.figure_7_lower_ranks(table, decoded=decoded),
    )
    yield (
        "figure-8-layer-group",
        "Figure 8: reduction by layer and group",
        ours.figure_8_layer_group(table),
    )


def _decoded(run: Run, table: NeuronTable) -> dict[tuple[int, int], str]:
    """The first logit-lens tokens of the neurons of tables 14 and 15 that reduce, whose tokens are
    known.
    """
    change = table.grid("projection_change")
    out = {}
    for stem in ("table-14-toxic-vectors", "table-15-antitoxic-vectors"):
        path = run.folder / "tables" / f"{stem}.csv"
        if path.exists():
            frame = read_csv(path)
            ours = frame.filter((pl.col("protocol") == table.protocol) & (pl.col("rank") <= 4))
            for (layer, neuron), group in ours.group_by(["layer", "neuron"], maintain_order=True):
                if change[layer, neuron] < 0:
                    out[layer, neuron] = " ".join(
                        token.strip() for token in group["token"] if token
                    )
    return out


def front_points(run: Run) -> list[FrontPoint]:
    """The rows of front.json that stand on the front."""
    points = []
    trained = run.stage("train")
    steps = float(trained.get("best_step", trained.get("steps", 1)))
    for row in _rows(run.folder / "front.json"):
        name, _, strength = row["intervention"].partition("@")
        family = ON_THE_FRONT.get(name)
        measured = [row["toxicity"], row["change"]["log_ppl"], row["kl"]]
        if family is not None and all(measured):
            dial = float(strength) if strength else steps if name == "dpo" else 0.0
            points.append(
                FrontPoint(
                    family, row["intervention"], dial, *(Estimate(**one) for one in measured)
                )
            )
    return points


def interactive_figures(run: Run) -> list[tuple[str, Markup]]:
    """Caption and fragment of the figures that a closer look at pays, drawn by plotly.js."""
    found = []
    tables = [table for table in run.tables.values() if table.compared]
    if tables:
        found += [
            ("Projection changes layer by layer.", interactive.layer_effects_html(tables[0])),
            (
                "Neurons ranked by what they reduce.", interactive.ranked_neurons_html(tables[0],
                decoded=_decoded(run, tables[0]))),
        ]  # fmt: skip
    if points := front_points(run):
        found.insert(
            0,
            (
                f"{run.concept.capitalize()} against its price, every family at several strengths.",
                interactive.front_html(points, "strict", concept=run.concept),
            ),
        )
    return [(caption, Markup(fragment)) for caption, fragment in found]
