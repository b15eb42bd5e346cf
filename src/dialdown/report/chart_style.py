"""How every figure looks: a chart is defined once, in Altair, and leaves by `drawing`.

Colours are Okabe and Ito's. Whatever tells marks apart by colour also does so by shape, dash or
place, so that it survives a grey printer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import altair as alt
import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..evaluation.bootstrap import Estimate
from .names import Look

Chart: TypeAlias = alt.Chart | alt.LayerChart | alt.FacetChart | alt.HConcatChart | alt.VConcatChart

Place = TypeVar("Place", alt.X, alt.Y)

COLOURS = {
    "ink": "#1b1f24",
    "muted": "#5d6771",
    "grid": "#dde2e7",
    "ground": "#fdfdfe",
    "blue": "#0072b2",
    "vermillion": "#d55e00",
    "green": "#009e73",
    "purple": "#aa4499",
    "orange": "#c98a00",
    "sky": "#56b4e9",
}
WIDTH = 380  # of a plot, pixels

DASHES = {"-": [1, 0], "--": [6, 3], "-.": [6, 2, 1, 2], ":": [2, 2]}


NO_GROUP = "none"
# Warm colours write along the direction, cool ones against it. A cosine or a base mean of exactly
# zero belongs to no group (METHOD §3), and the projection may still have changed.
GROUP_LOOKS = {
    "TP": Look("TP", "vermillion", "circle"),
    "TN": Look("TN", "orange", "square", "--"),
    "AP": Look("AP", "green", "triangle-up", "-."),
    "AN": Look("AN", "blue", "diamond", ":"),
    NO_GROUP: Look(NO_GROUP, "muted", "cross"),
}

AXIS = {
    "gridColor": COLOURS["grid"],
    "domainColor": COLOURS["muted"],
    "tickColor": COLOURS["muted"],
    "labelColor": COLOURS["ink"],
    "titleColor": COLOURS["ink"],
    "titleFontWeight": "normal",
    "titleFontSize": 11,
    "titlePadding": 8,
    "labelOverlap": "greedy",
    "labelSeparation": 5,
    "labelLimit": 240,
}
CONFIG: dict[str, Any] = {
    "axis": AXIS,
    "legend": {
        "orient": "bottom",
        "title": None,
        "labelColor": COLOURS["ink"],
        "labelFontSize": 11,
        "labelLimit": 260,
        "symbolSize": 70,
        "symbolStrokeWidth": 1.5,
        # Readers' fonts may be wider than the one that is measured here.
        "columnPadding": 24,
    },
    "title": {
        "anchor": "start",
        # From the edge of the figure: beside the axis a reader's wider font may leave no room.
        "frame": "bounds",
        "fontSize": 13,
        "color": COLOURS["ink"],
        "subtitleColor": COLOURS["muted"],
        "subtitleFontSize": 11,
        "subtitlePadding": 4,
        "offset": 12,
    },
    "view": {"stroke": None, "continuousWidth": WIDTH, "discreteWidth": WIDTH},
    "text": {"color": COLOURS["ink"], "fontSize": 11},
    "line": {"strokeJoin": "round"},
    "concat": {"spacing": 18},
}
LINE_KEYS = alt.Legend(symbolType="stroke", symbolSize=260, symbolStrokeWidth=2)


def titled(chart: Chart, title: str, *lines: str, columns: int = 3) -> Chart:
    """A finished chart: its title, small lines below it, and the look of everything else."""
    below = [line for line in lines if line]
    heading = alt.Title(title, subtitle=below) if below else alt.Title(title)
    config = {**CONFIG, "legend": {**CONFIG["legend"], "columns": columns}}
    finished: Chart = chart.properties(title=heading)
    # Not by its own method, which holds all of it against the schema for each chart.
    finished.config = config
    return finished


def scales(looks: Sequence[Look]) -> dict[str, alt.Scale]:
    """For a field that holds labels: its scales of colour, fill, shape and dash."""
    labels = [look.label for look in looks]
    colours = [COLOURS[look.colour] for look in looks]
    filled = zip(colours, looks, strict=True)
    ranges: dict[str, list[Any]] = {
        "colour": colours,
        "fill": [colour if look.filled else COLOURS["ground"] for colour, look in filled],
        "shape": [look.shape for look in looks],
        "dash": [DASHES[look.dash] for look in looks],
    }
    return {name: alt.Scale(domain=labels, range=values) for name, values in ranges.items()}


def symlog(
    values: Sequence[float] | NDArray[np.float64], constant: float, title: str | list[str]
) -> dict[str, Any]:
    """For values that may be far apart: a scale that is linear around zero and logarithmic beyond
    `constant`, and its axis.
    """
    low, high = 1.2 * min(*values, -constant / 2), 1.2 * max(*values, constant)
    last = np.ceil(np.log10(max(high, -low)))
    decades = 10.0 ** np.arange(np.floor(np.log10(constant)), last + 1)
    steps = decades if last - np.log10(constant) > 4 else np.unique([*decades, *(3 * decades)])
    below = [-step for step in steps[::-1] if -step >= low]
    if np.log1p(-low / constant) < np.log1p(high / constant) / 4:
        below = below[:1]  # a narrow side has room for one label beside the zero
    ticks = [*below, 0.0, *(step for step in steps if step <= high)]
    scale = alt.Scale(type="symlog", constant=constant, domain=[low, high], nice=False)
    return {"scale": scale, "axis": ticked([float(f"{tick:.6g}") for tick in ticks], "~g", title)}


def channel(kind: Callable[..., Place], **options: Any) -> Callable[[str], Place]:
    """An axis that marks share, for a field: `x = channel(alt.X, title="k")`, `x("k:Q")`."""
    return lambda field: kind(field, **options)


def ticked(values: Sequence[float], form: str, title: str | list[str]) -> alt.Axis:
    """An axis with these ticks, and no fewer."""
    # A format of the axis would take its digits from the distance of ticks: 1e+1 for 10.
    shown = f"format(datum.value, '{form}')"
    return alt.Axis(values=list(values), tickCount=len(values), labelExpr=shown, title=title)


def readable(values: NDArray[np.float64], title: str) -> Callable[[str], alt.Y]:
    """A vertical axis of these values, for a field; where a few dwarf the others it is linear
    around zero and logarithmic beyond.
    """
    sizes = np.abs(values[values != 0])
    if not len(sizes) or sizes.max() < 20 * np.median(sizes):
        return channel(alt.Y, title=title)
    constant = 10.0 ** np.floor(np.log10(np.median(sizes)))
    return channel(alt.Y, **symlog(values, constant, title))


def zero_line(axis: Literal["x", "y"]) -> alt.Chart:
    """A line at zero across a plot."""
    rule = alt.Chart(pl.DataFrame({"zero": [0]})).mark_rule(color=COLOURS["muted"])
    chart: alt.Chart = rule.encode(**{axis: alt.datum(0)})
    return chart


def tooltip_text(estimate: Estimate) -> str:
    """A mean, its interval and what it is over, under the pointer."""
    return f"{estimate:.3g}, n = {estimate.n:,}"
