"""Layers: what tuning moved in each layer (figure 1); a layer's neurons are a click away."""

from __future__ import annotations

from typing import Any

import gradio as gr
import polars as pl

from ..neurons.ranks import layer_effects
from ..neurons.table import GROUPS, NeuronTable
from ..report.neuron_charts import figure_1_layer_effects
from .chart import chart_view, drawn, filled
from .shelf import Shelf
from .words import says

NOTHING = (
    "There is nothing to compare layer by layer here: `dialdown run` tunes a model, or `dialdown "
    "diff` takes one that is tuned, and adds what changed in each layer."
)
HOW = "Click on a layer in the chart or in the list to see its neurons."


def by_layer(table: NeuronTable) -> pl.DataFrame:
    """A row per layer: sums of Δ that rise, fall and in all, and the neurons of each group."""
    rising, falling = layer_effects(table)
    groups = {name: mask.sum(1) for name, mask in table.groups().items()}
    return pl.DataFrame({
        "layer": range(table.shape[0]),
        "falling": falling,
        "rising": rising,
        "net": rising + falling,
        **{name: groups[name] for name in GROUPS},
    }).with_columns(pl.col(pl.Float64).round_sig_figs(4))  # fmt: skip


class LayersTab:
    """The tab's components."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.note = gr.HTML(elem_id="layers-note")
        with gr.Row():
            with gr.Column(scale=4, min_width=500):
                self.chart = chart_view("layers-chart")
            with gr.Column(scale=6, min_width=440):
                self.listed = gr.Dataframe(
                    interactive=False, show_label=False, max_height=560, elem_id="layers-list"
                )

    def show(self) -> tuple[str, Any, str]:
        """The chart and the list."""
        table = self.shelf.table
        if table is None or not table.compared:
            return "", filled(None), says(self.shelf.problem or NOTHING)
        chart = drawn(figure_1_layer_effects(table), "Projection changes by layer")
        return chart, filled(by_layer(table)), says(HOW)
