"""The report's interactive figures: HTML fragments that hold their data and draw themselves with
plotly.js, offline.

    page = f"<script>{plotly_js()}</script>{layer_effects_html(table)}{front_html(points, 'strict')}"

A fragment refers to nothing outside the page and is the same text every time. Names and tokens are
shown as they are, never as markup.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..evaluation.bootstrap import Estimate
from ..models.lm import Protocol
from ..neurons.ranks import layer_effects, ranking
from ..neurons.table import GROUPS, NeuronTable
from .drawing import NO_GROUP, counted
from .front import (
    FAMILIES,
    LINEAR,
    PRICES,
    TICKS,
    Family,
    FrontPoint,
    Price,
    by_family,
    check_front,
    counted_front,
    pareto_optimal,
)
from .style import COLOURS

POINTS = 2000  # of the curve over ranks
SYMBOLS = {
    "o": "circle",
    "*": "star",
    "^": "triangle-up",
    "v": "triangle-down",
    "s": "square",
    "D": "diamond",
    "P": "cross",
    "h": "hexagon",
    "x": "x-thin",
    "+": "cross-thin",
}
DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
AXIS: dict[str, Any] = {
    "gridcolor": COLOURS["grid"],
    "zerolinecolor": COLOURS["muted"],
    "zerolinewidth": 1,
}


def plotly_js() -> str:
    """The source of plotly.js, to be embedded once in a page; it needs no network."""
    from plotly.offline import get_plotlyjs

    # Its strings hold two control characters as they are, which a page should not; as escapes they
    # are the same strings.
    return re.sub("[\x00-\x08\x0b-\x1f\x7f]", lambda raw: f"\\x{ord(raw[0]):02x}", get_plotlyjs())


def layer_effects_html(table: NeuronTable) -> str:
    """What falls, what rises and the net in each layer (figures 1 and 5), as a fragment of HTML.

    Raises:
        DialdownError: no tuned model was compared.
    """
    up, down = layer_effects(table)
    layers = list(range(len(up)))
    sums = {"rising (Δ > 0)": (up, "vermillion", "/"), "falling (Δ < 0)": (down, "blue", "")}
    traces: list[dict[str, Any]] = [
        {
            "type": "bar",
            "name": name,
            "x": layers,
            "y": _numbers(values),
            "marker": {"color": COLOURS[colour], "pattern": {"shape": shape}},
            "hoverinfo": "skip",
        }
        for name, (values, colour, shape) in sums.items()
    ]
    net, so_far = up + down, np.cumsum(up + down)
    hovers = [
        _hover(
            f"layer {layer}",
            rising=_signed(up[layer]),
            falling=_signed(down[layer]),
            net=_signed(net[layer]),
        )
        + f"<br>net up to here {_signed(so_far[layer])}"
        for layer in layers
    ]
    traces.append(_line("net", layers, _numbers(net), "ink", "o", hovers))
    layout = {
        "barmode": "relative",
        "hovermode": "x",
        "xaxis": {**AXIS, "zeroline": False, "title": {"text": "layer"}},
        "yaxis": {**AXIS, "title": {"text": "ΣΔ in the layer (residual units)"}},
    }
    return _fragment(
        f"layer-effects-{table.protocol}",
        "Projection changes by layer",
        table.protocol,
        counted(table),
        traces,
        layout,
    )


def ranked_neurons_html(
    table: NeuronTable, *, decoded: Mapping[tuple[int, int], str] | None = None
) -> str:
    """Cumulated share of the reduction over ranks, each point a neuron to be read (figures 2b and
    7).

    Args:
        table: a compared neuron table.
        decoded: (layer, neuron) to the tokens it writes, shown where its projection fell.

    Raises:
        DialdownError: no tuned model was compared.
    """
    ranked, decoded = ranking(table), decoded or {}
    cumulated, share, names = ranked.cumulated, ranked.share, [*GROUPS, NO_GROUP]
    wanted = [layer * table.shape[1] + neuron for layer, neuron in decoded]
    places = np.union1d(ranked.places(POINTS), np.flatnonzero(np.isin(ranked.order, wanted)))
    hovers = []
    for place in places.tolist():
        layer, neuron = divmod(int(ranked.order[place]), table.shape[1])
        facts = {
            "group": names[ranked.group[place]],
            "Δ": _signed(-ranked.reduction[place]),
            "alone": f"{100 * share[place]:.3g} %",
            "first ranks together": f"{100 * cumulated[place]:.2f} %",
        }
        if tokens := decoded.get((layer, neuron)):
            facts["tokens"] = tokens
        hovers.append(_hover(f"rank {place + 1:,}: layer {layer}, neuron {neuron}", **facts))
    traces = [
        _line(
            "reduction",
            (places + 1).tolist(),
            _numbers(100 * cumulated[places]),
            "blue",
            "o",
            hovers,
        )
    ]
    traces[0]["marker"]["size"] = 3
    layout = {
        "showlegend": False,
        "xaxis": {
            **AXIS,
            "type": "log",
            "title": {"text": f"rank by reduction ({len(ranked.order):,} neurons fall)"},
        },
        "yaxis": {
            **AXIS,
            "title": {"text": "share of the whole reduction"},
            "ticksuffix": " %",
            "rangemode": "tozero",
        },
    }
    return _fragment(
        f"ranked-neurons-{table.protocol}",
        "Reduction by rank",
        table.protocol,
        counted(table),
        traces,
        layout,
    )


def front_html(
    points: Sequence[FrontPoint], protocol: Protocol, *, concept: str = "toxicity"
) -> str:
    """Toxicity against log-perplexity and KL (see `front.front`), with every number under the
    pointer.

    Raises:
        DialdownError: there are no points, or one is of an unknown family.
    """
    check_front(points)
    traces, prices = [], tuple(PRICES)
    for number, price in enumerate(prices, start=1):
        for family, ours in by_family(points).items():
            traces.append(_family_trace(FAMILIES[family], ours, price, number))
        best = [
            one for one, kept in zip(points, pareto_optimal(points, price), strict=True) if kept
        ]
        traces.append(_rings(best, price, number))
    layout = {
        "height": 560,
        "hovermode": "closest",
        "xaxis": {**_price_axis(points, "log_ppl"), "domain": [0, 0.48]},
        "xaxis2": {**_price_axis(points, "kl"), "domain": [0.52, 1], "anchor": "y"},
        "yaxis": {**AXIS, "title": {"text": f"{concept}, mean score"}, "rangemode": "tozero"},
    }
    return _fragment(
        f"front-{protocol}",
        f"{concept.capitalize()} against its price",
        protocol,
        counted_front(points),
        traces,
        layout,
    )


def _family_trace(
    look: Family, points: Sequence[FrontPoint], price: Price, panel: int
) -> dict[str, Any]:
    x, y = [one.price(price) for one in points], [one.toxicity for one in points]
    hovers = [
        _hover(
            f"{look.label}: {one.name}",
            strength=f"{one.strength:g}",
            score=_interval(one.toxicity),
            **{"change of log-perplexity": _interval(one.log_ppl), "KL": _interval(one.kl)},
        )
        for one in points
    ]
    trace = _line(
        look.label,
        _scaled([e.mean for e in x]),
        [e.mean for e in y],
        look.colour,
        look.marker,
        hovers,
    )
    trace["line"]["dash"] = DASHES[look.line]
    # Thin and open symbols are drawn by their outline.
    trace["marker"].update(size=10, symbol=SYMBOLS[look.marker] + ("" if look.filled else "-open"))
    trace["marker"]["line"] = {
        "width": 2 if look.marker in "x+" else 1,
        "color": COLOURS[look.colour],
    }
    trace["error_x"] = _error(_scaled([e.low for e in x]), trace["x"], _scaled([e.high for e in x]))
    trace["error_y"] = _error([e.low for e in y], trace["y"], [e.high for e in y])
    return trace | {"legendgroup": look.label, "showlegend": panel == 1, "xaxis": _axis_of(panel)}


def _rings(points: Sequence[FrontPoint], price: Price, panel: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "Pareto-optimal",
        "legendgroup": "Pareto-optimal",
        "showlegend": panel == 1,
        "xaxis": _axis_of(panel),
        "x": _scaled([one.price(price).mean for one in points]),
        "y": [one.toxicity.mean for one in points],
        "marker": {
            "symbol": "circle-open",
            "size": 19,
            "color": COLOURS["ink"],
            "line": {"width": 1.5},
        },
        "hoverinfo": "skip",
    }


def _axis_of(panel: int) -> str:
    return "x" if panel == 1 else f"x{panel}"


def _price_axis(points: Sequence[FrontPoint], price: Price) -> dict[str, Any]:
    low = min(one.price(price).low for one in points)
    high = max(one.price(price).high for one in points)
    ticks = [
        tick
        for tick in (*(-one for one in reversed(TICKS)), 0.0, *TICKS)
        if low <= tick <= max(1.3 * high, LINEAR)
    ]
    return {
        **AXIS,
        "title": {"text": PRICES[price]},
        "tickvals": _scaled(ticks),
        "ticktext": [f"{tick:g}".replace("-", "−") for tick in ticks],
    }


def _scaled(values: Sequence[float]) -> list[float]:
    """Linear around zero, logarithmic beyond; plotly has no such axis, so the values are placed and
    the ticks named.
    """
    return [round(math.asinh(value / LINEAR), 6) for value in values]


def _error(low: Sequence[float], mean: Sequence[float], high: Sequence[float]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [top - middle for top, middle in zip(high, mean, strict=True)],
        "arrayminus": [middle - bottom for bottom, middle in zip(low, mean, strict=True)],
        "thickness": 0.8,
        "width": 0,
    }


def _line(
    name: str, x: Any, y: Any, colour: str, marker: str, hovers: Sequence[str]
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": x,
        "y": y,
        "line": {"color": COLOURS[colour], "width": 1.6},
        "marker": {"color": COLOURS[colour], "symbol": SYMBOLS[marker], "size": 6},
        "hovertext": hovers,
        "hoverinfo": "text",
    }


def _hover(heading: str, **facts: str) -> str:
    # plotly.js reads tags in a text, links among them, and knows no entity for quotes.
    return "<br>".join(
        html.escape(line, quote=False)
        for line in (heading, *(f"{name} {value}" for name, value in facts.items()))
    )


def _interval(one: Estimate) -> str:
    return f"{one.mean:.3g} [{one.low:.3g}, {one.high:.3g}], n = {one.n:,}"


def _signed(value: float) -> str:
    return f"{value:+.3g}"


def _numbers(values: Any) -> list[float]:
    """Six digits are more than a screen shows, and keep the page small."""
    return [float(f"{value:.6g}") for value in values]


def _fragment(
    name: str,
    title: str,
    protocol: Protocol,
    count: str,
    traces: list[dict[str, Any]],
    layout: dict[str, Any],
) -> str:
    from plotly.io import to_html

    common = {
        "height": 420,
        "title": {
            "text": f"{title} · {protocol}",
            "font": {"size": 15},
            "subtitle": {
                "text": html.escape(count, quote=False),
                "font": {"size": 12, "color": COLOURS["muted"]},
            },
            "x": 0.01,
        },
        "font": {"color": COLOURS["ink"], "size": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {
            "bgcolor": COLOURS["ground"],
            "align": "left",
            "font": {"color": COLOURS["ink"]},
        },
        "legend": {"orientation": "h", "y": -0.22},
        "margin": {"l": 70, "r": 20, "t": 70, "b": 60},
    }
    # A figure as a plain mapping takes no default template along, and needs no import of plotly's
    # classes.
    fragment: str = to_html(
        {"data": traces, "layout": {**common, **layout}},
        # The bar of buttons offers what leaves the page; dragging zooms and a double click resets
        # without it.
        config={"displayModeBar": False, "responsive": True},
        include_plotlyjs=False,
        full_html=False,
        div_id=name,
        validate=False,
    )
    return fragment
