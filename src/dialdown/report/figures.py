"""The figures of a run: which there are, with their numbers, captions and files (METHOD §9).

    for figure in run_figures(run)["layers"]:
        save(figure.chart, run.folder / "figures" / figure.name)

A figure whose numbers were not measured is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import polars as pl

from ..data.csv_tables import read_csv
from ..evaluation.bootstrap import Estimate
from ..evaluation.row import Row
from ..files import read_json
from ..models.protocol import Protocol
from ..neurons.statistics import PLACES
from ..neurons.table import NeuronTable
from ..study.ladder_text import CAVEATS, caveats, short_names
from . import neuron_charts, rank_charts
from .chart_style import Chart
from .charts import PRICES, Point, Price, controls, ladder, tradeoff
from .drawing import save
from .names import FAMILIES, METHODS, label, look, table_number
from .run import Run, of_all

UNTOUCHED = Estimate(0.0, 0.0, 0.0, 0)  # the untouched model differs from itself by nothing
DRAWN = f"drawn at no more than {PLACES} ranks"
# Of a neuron table: name, number in the paper, what it shows, and the tables with its numbers.
PAPER_FIGURES: Mapping[str, tuple[str, str, tuple[str, ...], Callable[..., Chart]]] = {
    "figure-1-layer-effects": (
        "Figures 1 and 5", "projection changes of falling and rising neurons, by layer and summed",
        ("figure-1-opposing-effects",), neuron_charts.figure_1_layer_effects),
    "figure-2a-group-contribution": (
        "Figures 2a and 6a", "what each group contributes to the reduction",
        ("table-4-group-roles", "table-5-group-shares"),
        neuron_charts.figure_2a_group_contribution),
    "figure-2b-ranked-share": (
        "Figures 2b and 6b", f"share of each group among the neurons that reduce most, {DRAWN}",
        (), rank_charts.figure_2b_ranked_share),
    "figure-2c-group-shift": (
        "Figures 2c and 6c", "activation shift by group, in % of the activation before tuning",
        (), neuron_charts.figure_2c_group_shift),
    "figure-3-top-aligned": (
        "Figure 3", "mean activations of the most aligned neurons, before and after tuning",
        (), neuron_charts.figure_3_top_aligned),
    "figure-4-shift-distribution": (
        "Figure 4", "activation shifts in % of the activation before tuning",
        ("section-5-1-shifts",), neuron_charts.figure_4_shift_distribution),
    "figure-7-lower-ranks": (
        "Figure 7", f"the reduction over the ranks of the neurons, {DRAWN}",
        (), rank_charts.figure_7_lower_ranks),
    "figure-8-layer-group": (
        "Figure 8", "reduction by layer and group", (), neuron_charts.figure_8_layer_group),
}  # fmt: skip


class Figure(NamedTuple):
    """A chart on the page: the name of its files and place, its number in the paper or a letter,
    and the file stems of the tables that have its numbers.
    """

    name: str
    number: str
    caption: str
    tables: tuple[str, ...]
    chart: Chart

    @property
    def numbers(self) -> list[tuple[str, str]]:
        """The files with its numbers, each with what its link is called."""
        several = len(self.tables) > 1
        return [
            (f"CSV ({table_number(stem)})" if several else "CSV", f"tables/{stem}.csv")
            for stem in self.tables
        ]


def run_figures(run: Run, *, brief: bool = False) -> dict[str, list[Figure]]:
    """By section of the page, the figures that the run has numbers for; `brief` are those at the
    top.
    """
    top = {
        "tradeoff": [*_tradeoffs(run, "log_ppl")],
        "layers": [*_neurons(run, "figure-1")],
        "groups": [*_neurons(run, "figure-2")],
    }
    if brief:
        return top
    further = [name for name in PAPER_FIGURES if name > "figure-3"]
    return {
        **top,
        "kl": [*_tradeoffs(run, "kl")],
        "front": [*_front(run)],
        "controls": [*_controls(run)],
        "neurons": [figure for name in further for figure in _neurons(run, name)],
    }


def points(run: Run, protocol: Protocol) -> list[Point]:
    """The trade-off of a run's interventions under one protocol; of further strengths those that
    were measured on as many prompts.
    """
    rows = [row for name in run.names() if (row := run.result(name, protocol))]
    most = max((row.prompts for row in rows), default=0)
    kept = [point_of(row) for row in rows if row.prompts == most or not row.strength]
    return [point for point in kept if point]


def front_points(run: Run) -> list[Point]:
    """The rows of front.json that stand on the front."""
    trained = run.stage("train")
    steps = float(trained.get("best_step", trained.get("steps", 1)))
    front = []
    for row in run.front:
        point = point_of(row)
        if row.family in FAMILIES and point and point.kl:
            dial = float(row.strength) if row.strength else steps if row.family == "dpo" else 0.0
            front.append(replace(point, strength=dial))
    return front


def point_of(row: Row) -> Point | None:
    """A row in the trade-off, without a strength; None where it has no place there."""
    untouched = UNTOUCHED if row.intervention == "none" else None
    price = untouched or row.change.get("log_ppl")
    if "toxicity" not in row.metrics or price is None:
        return None
    kl = untouched or row.metrics.get("kl")
    return Point(look(row), label(row), None, row.metrics["toxicity"], price, kl)


def _tradeoffs(run: Run, price: Price) -> Iterator[Figure]:
    measured = {protocol: points(run, protocol) for protocol in run.protocols}
    everything = [point for protocol in measured for point in measured[protocol]]
    number, name = {"log_ppl": ("Figure A", "tradeoff"), "kl": ("Figure B", "tradeoff-kl")}[price]
    for protocol, here in measured.items():
        if any(point.price(price) for point in here):
            yield Figure(
                f"{name}-{protocol}",
                number,
                f"{run.model}, {protocol}: {run.concept} against {PRICES[price]}. Down and to the "
                "left is better.",
                ("table-2-interventions",),
                tradeoff(here, protocol, price=price, everything=everything, concept=run.concept),
            )


def _front(run: Run) -> Iterator[Figure]:
    front, partial = front_points(run), ""
    if run.front_of is not None:
        partial = f" So far {of_all(run.front, run.front_of)} rows are measured."
    for price in PRICES if front else ():
        yield Figure(
            f"front-{price}".replace("_", "-"),
            "Figure C",
            f"{run.model}, strict: every family of interventions at several strengths, and DPO "
            "along its training, on the same prompts. The large mark of a line is its greatest "
            f"strength.{partial}",
            (),
            tradeoff(front, "strict", price=price, concept=run.concept),
        )


def _controls(run: Run) -> Iterator[Figure]:
    for protocol in run.protocols:
        rows = {}
        for name in run.names():
            row, beside = run.result(name, protocol), run.controls(name, protocol)
            if row is not None and "toxicity" in row.change and beside:
                rows[label(row)] = {"": row.change["toxicity"]} | {
                    control: other.change["toxicity"]
                    for control, other in beside.items()
                    if "toxicity" in other.change
                }
        if rows:
            yield Figure(
                f"controls-{protocol}",
                "Figure D",
                f"{run.model}, {protocol}: change of {run.concept} under interventions and their "
                "controls, with 95% intervals.",
                ("controls-toxicity",),
                controls(rows, protocol, f"change of {run.concept} (mean score)"),
            )


def _neurons(run: Run, start: str) -> Iterator[Figure]:
    """The paper's figures whose name starts so, of each protocol."""
    for name, (number, caption, tables, draw) in PAPER_FIGURES.items():
        for protocol, neurons in run.tables.items():
            if name.startswith(start) and neurons.compared:
                # Figure 7 also names neurons whose tokens are known.
                further = {"decoded": _decoded(run, neurons)} if number == "Figure 7" else {}
                yield Figure(
                    f"{name}-{protocol}",
                    number,
                    f"{run.model}, {protocol}: {caption}.",
                    tables,
                    draw(neurons, **further),
                )


def _decoded(run: Run, table: NeuronTable) -> dict[tuple[int, int], str]:
    """The first logit-lens tokens of the neurons of tables 14 and 15 that reduce, whose tokens are
    known.
    """
    change = table.grid("projection_change")
    tokens: dict[tuple[int, int], str] = {}
    for stem in ("table-14-toxic-vectors", "table-15-antitoxic-vectors"):
        path = run.folder / "tables" / f"{stem}.csv"
        if path.exists():
            frame = read_csv(path).filter(
                (pl.col("protocol") == table.protocol) & (pl.col("rank") <= 4)
            )
            for (layer, neuron), group in frame.group_by(["layer", "neuron"], maintain_order=True):
                if change[layer, neuron] < 0:
                    tokens[layer, neuron] = " ".join(
                        token.strip() for token in group["token"] if token
                    )
    return tokens


def draw_ladder(folder: Path) -> list[Path]:
    """Draw what `dialdown ladder` left in a folder, as files in its `figures`."""
    table = read_json(folder / "ladder.json")
    concept = read_json(folder / "run.json")["config"]["concept"]
    names = {row["method"]: METHODS.get(row["method"], row["method"]) for row in table["rows"]}
    judges = short_names([*table["rows"][0]["toxicity_by"]])
    rows = {
        names[row["method"]]: {
            judges[judge]: Estimate.of(mean) for judge, mean in row["toxicity_by"].items()
        }
        for row in table["rows"]
    }
    unlike = {
        words: [names[row["method"]] for row in table["rows"] if words in caveats(row)]
        for words in CAVEATS
    }
    chart = ladder(rows, concept, table["kl"], unlike)
    return save(chart, folder / "figures" / "ladder")
