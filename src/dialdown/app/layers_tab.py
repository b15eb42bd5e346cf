"""Layers: what tuning moved in each layer (figure 1); a layer's neurons are a click away."""

from __future__ import annotations

from typing import Any

import gradio as gr
import polars as pl

from ..neurons.statistics import opposing_effects
from ..neurons.table import NeuronTable
from ..report.neuron_charts import figure_1_layer_effects
from .chart import chart_and_list, drawn, filled
from .neurons import GROUPING
from .shelf import Shelf
from .words import says

NOTHING = (
    "There is nothing to compare layer by layer here: `dialdown run` tunes a model, or `dialdown "
    "diff` takes one that is tuned, and adds what changed in each layer."
)
HOW = f"Click on a layer in the chart or in the list to see its neurons. {GROUPING}."


def by_layer(table: NeuronTable) -> pl.DataFrame:
    """A row per layer: sums of Δ that rise, fall and in all, and the neurons of each group."""
    sums = opposing_effects(table).drop_nulls("layer")
    groups = {name: mask.sum(1) for name, mask in table.groups().items()}
    return sums.select(
        "layer",
        pl.col("down").alias("falling"),
        pl.col("up").alias("rising"),
        "net",
        **{name: pl.Series(counts) for name, counts in groups.items()},
    ).with_columns(pl.col(pl.Float64).round_sig_figs(4))


class LayersTab:
    """The tab's components."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.note = gr.HTML(elem_id="layers-note")
        self.chart, self.listed = chart_and_list("layers")

    def show(self) -> tuple[str, Any, str]:
        """The chart and the list."""
        table = self.shelf.table
        if table is None or not table.compared:
            return "", filled(None), says(self.shelf.problem or NOTHING)
        chart = drawn(figure_1_layer_effects(table), "Projection changes by layer")
        return chart, filled(by_layer(table)), says(HOW)
