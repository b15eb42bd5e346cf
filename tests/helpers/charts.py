"""Invented numbers to draw, and what a chart draws, read back from its Vega-Lite specification."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import vl_convert

from dialdown.evaluation.bootstrap import Estimate
from dialdown.neurons.table import NeuronTable
from dialdown.report.chart_style import Chart
from dialdown.report.charts import Point


def compared_table(
    shape: tuple[int, int] = (4, 50), *, kind: str = "plain", protocol: str = "strict"
) -> NeuronTable:
    """A compared table of invented numbers.

    Kinds: `plain`; `positive` has no negative cosine, so AP and AN are empty; `still` has no change
    at all; `sparse` has base means of exactly zero whose projection falls all the same, which
    belong to no group; `silent` has no mean but zero.
    """
    rng = np.random.default_rng(7)
    cosine, base = rng.normal(0, 0.1, shape), rng.normal(0, 0.5, shape)
    if kind == "positive":
        cosine = np.abs(cosine)
    if kind == "sparse":
        base[:, ::3] = 0.0
    if kind == "silent":
        base[:] = 0.0
    tuned = base if kind == "still" else base + rng.standard_t(3, shape) * 0.02
    columns = {
        "layer": np.indices(shape)[0],
        "neuron": np.indices(shape)[1],
        "cosine": cosine,
        "mean_base": base,
        "mean_tuned": tuned,
        "projection_base": base * cosine,
        "projection_tuned": tuned * cosine,
        "projection_change": (tuned - base) * cosine,
        "value_cosine": np.ones(shape),
    }
    record = {
        "protocol": protocol,
        "direction": {"name": "probe"},
        "count_base": 2431,
        "count_tuned": 2390,
    }
    return NeuronTable({name: values.reshape(shape) for name, values in columns.items()}, record)


def views(chart: Chart) -> list[dict[str, Any]]:
    """Every mark of a chart, which Altair has validated: its specification, with its rows as
    `data`.
    """
    spec = chart.to_dict()

    def walk(part: dict[str, Any], data: Any) -> Iterator[dict[str, Any]]:
        data = part.get("data", data)
        for key in ("layer", "hconcat", "vconcat"):
            for inner in part.get(key, []):
                yield from walk(inner, data)
        if "mark" in part:
            rows = spec["datasets"][data["name"]] if "name" in data else data["values"]
            yield {**part, "data": rows}

    return list(walk(spec, None))


def rows_of(chart: Chart, mark: str, *fields: str) -> list[dict[str, Any]]:
    """The rows of the first mark of a kind that shows these fields."""
    for view in views(chart):
        channels = [value for value in view["encoding"].values() if isinstance(value, dict)]
        shown = {channel.get("field") for channel in channels}
        if view["mark"]["type"] == mark and set(fields) <= shown:
            rows: list[dict[str, Any]] = view["data"]
            return rows
    raise AssertionError(f"no {mark} shows {fields}")


def column(rows: list[dict[str, Any]], name: str, **where: Any) -> list[Any]:
    return [row[name] for row in rows if all(row[key] == value for key, value in where.items())]


def drawn(chart: Chart) -> str:
    """The chart as SVG, without its labels for screen readers, which describe empty lines too."""
    svg = vl_convert.vegalite_to_svg(chart.to_dict())
    return re.sub(r'aria-label="[^"]*"', "", svg)


def estimate(mean: float, spread: float = 0.02, n: int = 128) -> Estimate:
    return Estimate(mean, mean - spread, mean + spread, n)


def point(family: str, strength: float, toxicity: float, price: float, *, name: str = "") -> Point:
    prices = (estimate(price, price / 5, n=12), estimate(0.8 * price, price / 6, n=12))
    return Point(family, name or family, strength, estimate(toxicity), *prices)


POINTS = [
    point("none", 0, 0.4, 0.0),
    point("edit_probe_set", 0.5, 0.04, 6.1),
    point("edit_probe_set", 0.2, 0.12, 2.1),
    point("dpo", 60, 0.06, 0.03),
    point("dpo", 20, 0.2, 0.01),
    point("edit_random_neurons_scale", 0.5, 0.3, 3.0),
]
