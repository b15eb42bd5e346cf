"""The figures of a run: which there are, with their file names and captions (METHOD §9).

    for figure in run_figures(run)["neurons"]:
        save(figure.chart, run.folder / "figures" / figure.name)

A figure whose numbers were not measured is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import polars as pl

from ..data.csv_tables import read_csv
from ..evaluation.bootstrap import Estimate
from ..evaluation.row import Row
from ..models.lm import Protocol
from ..neurons.ranks import PLACES
from ..neurons.table import NeuronTable
from . import neuron_charts, rank_charts
from .chart_style import Chart
from .charts import STEPS, Point, controls, tradeoff, training, value_distance
from .names import FAMILIES, UNITS, look, short
from .run import PROTOCOLS, Run
from .text import number

UNTOUCHED = Estimate(0.0, 0.0, 0.0, 0)  # the untouched model differs from itself by nothing
LOGGED = (
    (
        "loss",
        "Loss",
        "nats",
        {"training": ("step", "loss"), "held-out pairs": ("eval_step", "eval_loss")},
    ),
    (
        "kl",
        "KL to the base model",
        "nats per token",
        {"KL⁺, preferred": ("step", "kl_chosen"), "KL⁻, dispreferred": ("step", "kl_rejected")},
    ),
    ("accuracy", "Reward accuracy", "share of pairs", {"training": ("step", "reward_accuracy")}),
)


class Figure(NamedTuple):
    """A chart, the name of its files and of its place on the page, and its caption."""

    name: str
    caption: str
    chart: Chart


def run_figures(run: Run) -> dict[str, list[Figure]]:
    """By section of the page, the figures that the run has numbers for."""
    return {
        "tradeoff": list(_tradeoffs(run)),
        "front": list(_front(run)),
        "controls": [figure for name in run.protocols for figure in _controls(run, name)],
        "neurons": [*_neurons(run), *_values(run)],
        "training": list(_training(run)),
    }


def table_figures(table: NeuronTable, decoded: Mapping[tuple[int, int], str]) -> Iterator[Figure]:
    """Figures 1 to 8 of one table; `decoded` are the tokens of some neurons."""
    charts, drawn = neuron_charts, f"drawn at no more than {PLACES} ranks"
    lower_ranks = partial(rank_charts.figure_7_lower_ranks, decoded=decoded)
    figures: list[tuple[str, str, Callable[[NeuronTable], Chart]]] = [
        ("1-layer-effects", "Figures 1 and 5: projection changes of the decreasing and the "
         "increasing neurons, summed over the layers", charts.figure_1_layer_effects),
        ("2a-group-contribution", "Figures 2a and 6a: what each group contributes to the "
         "reduction", charts.figure_2a_group_contribution),
        ("2b-ranked-share", "Figures 2b and 6b: share of each group among the neurons that reduce "
         f"most, {drawn}", rank_charts.figure_2b_ranked_share),
        ("2c-group-shift", "Figures 2c and 6c: activation shift by group, in % of the activation "
         "before tuning", charts.figure_2c_group_shift),
        ("3-top-aligned", "Figure 3: mean activations of the neurons most aligned with the "
         "direction, before and after tuning", charts.figure_3_top_aligned),
        ("4-shift-distribution", "Figure 4: distribution of the activation shifts, in % of the "
         "activation before tuning", charts.figure_4_shift_distribution),
        ("7-lower-ranks", "Figure 7: the reduction over the ranks of the neurons, and what some "
         f"of them write, {drawn}", lower_ranks),
        ("8-layer-group", "Figure 8: reduction by layer and group", charts.figure_8_layer_group),
    ]  # fmt: skip
    for name, caption, draw in figures:
        yield Figure(f"figure-{name}", caption, draw(table))


def front_points(run: Run) -> list[Point]:
    """The rows of front.json that stand on the front."""
    trained = run.stage("train")
    steps = float(trained.get("best_step", trained.get("steps", 1)))
    points = []
    for row in run.front:
        toxicity, kl = (row.metrics.get(metric) for metric in ("toxicity", "kl"))
        price = row.change.get("log_ppl")
        if row.family in FAMILIES and toxicity and price and kl:
            dial = float(row.strength) if row.strength else steps if row.family == "dpo" else 0.0
            points.append(Point(look(row), short(row), dial, toxicity, price, kl))
    return points


def _front(run: Run) -> Iterator[Figure]:
    if points := front_points(run):
        yield Figure(
            "front-strict",
            "Every family of interventions at several strengths, and DPO along its training, on "
            "the same prompts (strict). The large mark of a line is its greatest strength.",
            tradeoff(points, "strict", concept=run.concept),
        )


def _tradeoffs(run: Run) -> Iterator[Figure]:
    points = {
        protocol: [
            point
            for name in run.names()
            if (row := run.result(name, protocol)) and (point := _point(row))
        ]
        for protocol in run.protocols
    }
    everything = [point for measured in points.values() for point in measured]
    for protocol, measured in points.items():
        if measured:
            yield Figure(
                f"tradeoff-{protocol}",
                f"{protocol}: {run.concept} and the price of each intervention, with 95% "
                "intervals. Down and to the left is better.",
                tradeoff(measured, protocol, everything=everything, concept=run.concept),
            )


def _point(row: Row) -> Point | None:
    untouched = UNTOUCHED if row.intervention == "none" else None
    price = untouched or row.change.get("log_ppl")
    if "toxicity" not in row.metrics or price is None:
        return None
    kl = untouched or row.metrics.get("kl")
    return Point(look(row), short(row), None, row.metrics["toxicity"], price, kl)


def _controls(run: Run, protocol: Protocol) -> Iterator[Figure]:
    for metric, quantity in (
        ("toxicity", f"change of {run.concept} (mean score)"),
        ("log_ppl", "change of log-perplexity (nats per token)"),
    ):
        rows = {}
        for name in run.names():
            row, beside = run.result(name, protocol), run.controls(name, protocol)
            if row is not None and metric in row.change and beside:
                rows[short(row)] = {"": row.change[metric]} | {
                    control: other.change[metric]
                    for control, other in beside.items()
                    if metric in other.change
                }
        if rows:
            main = {row[""].n for row in rows.values()}
            others = {row[key].n for row in rows.values() for key in row if key}
            yield Figure(
                f"controls-{metric}-{protocol}".replace("_", "-"),
                f"{protocol}: {quantity}, with 95% intervals; n = {_counts(main)} {UNITS[metric]}, "
                f"controls n = {_counts(others)}.",
                controls(rows, protocol, quantity),
            )


def _counts(sizes: set[int]) -> str:
    return ", ".join(f"{size:,}" for size in sorted(sizes)) or "none"


def _neurons(run: Run) -> Iterator[Figure]:
    for protocol, table in run.tables.items():
        if table.compared:
            for name, caption, chart in table_figures(table, _decoded(run, table)):
                yield Figure(f"{name}-{protocol}", f"{caption} ({protocol}).", chart)


def _values(run: Run) -> Iterator[Figure]:
    compared = [run.tables[name] for name in PROTOCOLS if name in run.tables]
    table = next((table for table in compared if table.compared), None)
    if table and (chart := value_distance(table)):
        cosine = table.grid("value_cosine")
        yield Figure(
            "value-vectors",
            f"{table.protocol}: how far value vectors turned in tuning; lowest cosine "
            f"{number(cosine.min(), 6)}, mean {number(cosine.mean(), 6)}.",
            chart,
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


def _training(run: Run) -> Iterator[Figure]:
    log = run.stage("train")
    for name, title, unit, columns in LOGGED:
        lines = {
            line: (log[steps], log[values])
            for line, (steps, values) in columns.items()
            if log.get(steps) and log.get(values)
        }
        if log.get("step") and lines:
            every = -(-len(log["step"]) // STEPS)
            thinned = f", every {every}th logged step" if every > 1 else ""
            yield Figure(
                f"training-{name}",
                f"{title} ({unit}) over the steps of DPO{thinned}.",
                training(title, unit, lines),
            )
