"""A chart in the app that says what was clicked: the report's own charts, drawn by Vega without a
network; and the list beside it.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

import gradio as gr
import polars as pl
import vl_convert

from ..report.chart_style import COLOURS, Chart

# Of an event: no spinner over what it fills, and no place in Gradio's own API.
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


@cache
def vega() -> str:
    """Vega and what draws with it, as one script; bundling takes seconds."""
    return vl_convert.javascript_bundle("window.dialdownVega = vegaEmbed;")


def drawing_library(_request: object = None) -> str:
    """`vega` for a page, which calls it with what it says and expects nothing of it."""
    return vega()


def chart_and_list(name: str) -> tuple[gr.HTML, gr.Dataframe]:
    """An empty chart, and the list beside it."""
    with gr.Row():
        with gr.Column(scale=4, min_width=560):
            chart = chart_view(f"{name}-chart")
        with gr.Column(scale=6, min_width=440):
            rows = gr.Dataframe(
                interactive=False, show_label=False, max_height=560, elem_id=f"{name}-list"
            )
    return chart, rows


def chart_view(name: str) -> gr.HTML:
    """An empty chart; its `select` event carries what the clicked mark stands for."""
    script = (resources.files(__package__) / "chart.js").read_text(encoding="utf-8")
    return gr.HTML(
        "",
        html_template='<div class="dd-chart" role="group" tabindex="0"></div>',
        js_on_load=script,
        server_functions=[drawing_library],
        elem_id=name,
        elem_classes="dd-scroll",
    )


def drawn(chart: Chart | None, description: str) -> str:
    """A chart as the value of a `chart_view`, its colours as CSS variables, so that it suits light
    and dark; nothing where there is none.
    """
    if chart is None:
        return ""
    spec = {**chart.to_dict(validate=False), "background": None, "description": description}
    del spec["$schema"]
    text = json.dumps(spec, separators=(",", ":"))
    for name, colour in COLOURS.items():
        text = text.replace(f'"{colour}"', f'"var(--fig-{name})"')
    return text


def filled(frame: pl.DataFrame | None) -> Any:
    """A table with the rows of a frame, hidden where there is none."""
    if frame is None:
        return gr.update(visible=False)
    cells = {"headers": frame.columns, "data": [list(row) for row in frame.iter_rows()]}
    return gr.update(value=cells, visible=True)
