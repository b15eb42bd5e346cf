"""The figures of a study, in one style: each function returns a matplotlib Figure, `as_svg` turns
it into inline SVG.

Every figure names its protocol. Marks differ in shape and hatch besides colour, so they survive a
grey printer. The text stays text (small, selectable, in the reader's font), and the colours become
CSS variables, so one SVG suits light and dark.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from ..evaluation.bootstrap import Estimate
from ..models.lm import Protocol
from ..neurons.table import NeuronTable

# Okabe and Ito's colours, whose order of lightness also holds in grey.
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
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    # Labels may hold any name, and a dollar sign is no formula.
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.7,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "hatch.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.0,
    "figure.constrained_layout.use": True,
    "savefig.transparent": True,
}
WIDTH = 4.8

# Family of interventions: label, colour, marker.
FAMILIES = {
    "none": ("untouched", "ink", "o"),
    "dpo": ("DPO", "vermillion", "*"),
    "steer": ("steering", "purple", "^"),
    "patch": ("patching", "blue", "s"),
    "probe": ("editing, probe", "green", "D"),
    "contrast": ("editing, token contrast", "orange", "v"),
}
# Control: label, colour, marker; the intervention itself has an empty name.
MARKS = {
    "": ("the intervention", "ink", "o"),
    "random_neurons": ("random neurons", "vermillion", "s"),
    "random_neurons_2": ("random neurons, 2nd seed", "vermillion", "D"),
    "random_neurons_3": ("random neurons, 3rd seed", "vermillion", "P"),
    "random_direction": ("random direction", "blue", "^"),
    "beta_reversed": ("β reversed", "purple", "v"),
    "beta_zero": ("β = 0", "green", "D"),
}
# Protocol: colour, marker, line, hatch.
PROTOCOL_MARKS: dict[Protocol, tuple[str, str, str, str]] = {
    "strict": ("blue", "o", "-", ""),
    "paper": ("vermillion", "s", "--", "////"),
}
# Differences of log-perplexity span three orders: linear below this, logarithmic above.
LINEAR = 0.1
TICKS = (-10, -3, -1, -0.3, -0.1, 0, 0.1, 0.3, 1, 3, 10, 30)


@dataclass(frozen=True)
class Point:
    """One intervention in the trade-off; `named` ones get their label beside the mark."""

    label: str
    family: str
    x: Estimate
    y: Estimate
    named: bool


@contextmanager
def style() -> Iterator[None]:
    """The settings every figure is drawn and saved under."""
    with mpl.rc_context(STYLE):
        yield


def as_svg(figure: Figure, name: str, description: str) -> str:
    """A figure as an `svg` element to put into HTML: the same bytes every time, ids of its own,
    colours as CSS variables.
    """
    buffer = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The reader's font draws the text; the one that measures it may lack a script.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        figure.savefig(
            buffer,
            format="svg",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    # Tags alone: a figure's text is what it says, such as a tick at 0.0001 %.
    svg = re.sub(r"<[^<>]*>", lambda tag: _inline(tag[0], name), svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)


def _inline(tag: str, name: str) -> str:
    """A tag of a figure as the page has it: ids that begin with the figure's name, short numbers,
    colours as variables.
    """
    tag = re.sub(r' xmlns(:xlink)?="[^"]*"', "", tag)
    tag = re.sub(r'\bid="|(?<=href=")#|(?<=url\()#', lambda match: f"{match[0]}{name}-", tag)
    tag = re.sub(r"(\d+\.\d{3})\d+", r"\1", tag)
    tag = re.sub(r"font-family: [^;\"]*; ", "", tag)
    # A CSS variable belongs into a style; as the attribute of a hatch's ground it would depend on
    # the browser.
    tag = re.sub(r'fill="(#[0-9a-f]{6})"', r'style="fill: \1"', tag)
    for colour, value in COLOURS.items():
        tag = tag.replace(value, f"var(--fig-{colour})")
    return tag


def tradeoff(
    points: Sequence[Point],
    protocol: Protocol,
    everything: Sequence[Point],
    *,
    concept: str = "toxicity",
) -> Figure:
    """Toxicity against the price in log-perplexity, one protocol (table 2 as a picture).

    Args:
        points: what was measured under this protocol.
        protocol: its name.
        everything: the points of all protocols, which set the axes that the panels share.
        concept: what the scores are of.
    """
    with style():
        figure, axes = _new(4.3, f"{concept.capitalize()} against its price · {protocol}")
        _price_axis(
            axes.xaxis,
            axes.set_xscale,
            [e for point in everything for e in (point.x.low, point.x.high)],
        )
        axes.set_xlabel(f"change of log-perplexity to untouched (nats per token, {protocol})")
        axes.set_ylabel(f"{concept}, mean score ({protocol})")
        axes.set_ylim(0, 1.08 * max(0.05, *(point.y.high for point in everything)))
        axes.axvline(0, color=COLOURS["muted"], linewidth=0.8)
        for family, (name, colour, marker) in FAMILIES.items():
            ours = [point for point in points if point.family == family]
            if ours:
                _cross(axes, ours, COLOURS[colour], marker, name)
        _name_points(axes, [point for point in points if point.named])
        figure.legend(loc="outside lower center", ncols=3, handletextpad=0.3, columnspacing=1.2)
    return figure


def controls(
    rows: Mapping[str, Mapping[str, Estimate]],
    protocol: Protocol,
    quantity: str,
    *,
    price: bool = False,
) -> Figure:
    """Interventions and their controls as dots with 95 % intervals (METHOD §5).

    Args:
        rows: label to estimates by control; the intervention itself under the empty name.
        protocol: under which all of it was measured.
        quantity: what the axis shows, with its unit.
        price: the quantity is a difference of log-perplexity, which may be enormous.
    """
    with style():
        figure, axes = _new(
            1.3 + 0.4 * len(rows), f"{quantity.partition(' (')[0].capitalize()} · {protocol}"
        )
        for place in range(1, len(rows), 2):
            axes.axhspan(place - 0.5, place + 0.5, color=COLOURS["grid"], alpha=0.45, linewidth=0)
        placed: dict[str, list[tuple[float, Estimate]]] = {}
        for place, row in enumerate(rows.values()):
            for step, (control, estimate) in enumerate(row.items()):
                placed.setdefault(control, []).append(
                    (place + (step - (len(row) - 1) / 2) * 0.17, estimate)
                )
        for control, dots in placed.items():
            _dots(axes, dots, *MARKS.get(control, (control, "muted", "x"))[1:], filled=not control)
        axes.axvline(0, color=COLOURS["muted"], linewidth=0.9)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"{quantity}\npaired, to the untouched model, {protocol}")
        if price:
            _price_axis(
                axes.xaxis,
                axes.set_xscale,
                [x for row in rows.values() for e in row.values() for x in (e.low, e.high)],
            )
        seen = [key for key in MARKS if any(key in row for row in rows.values())]
        figure.legend(
            handles=[_key(*MARKS[key], filled=not key) for key in seen],
            loc="outside lower center",
            ncols=3,
            handletextpad=0.2,
        )
    return figure


def value_distance(table: NeuronTable) -> Figure | None:
    """How far value vectors turned, 1 − cosine before/after (section 5.1); None where none turned
    measurably.
    """
    distance = 1 - table.grid("value_cosine")
    if not (distance > 0).any():
        return None
    with style():
        figure, axes = _new(
            3.6,
            f"Value vectors barely turn · {table.protocol}"
            if distance.max() < 0.01
            else f"Value vectors turn · {table.protocol}",
        )
        worst, mean = distance.max(1), distance.mean(1)
        _layer_lines(
            axes,
            (
                ("furthest neuron of the layer", worst, "vermillion", "^", "--"),
                ("mean of the layer", mean, "blue", "o", "-"),
            ),
        )
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda tick, _: f"{tick:.0e}".replace("e-0", "e−").replace("e-", "e−"))
        )
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylabel("1 − cosine of value vector, base to tuned")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def training(
    title: str, unit: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> Figure:
    """One quantity of the training log over optimiser steps (METHOD §8): name to steps and
    values.
    """
    marks = (("blue", "o", "-"), ("vermillion", "s", "--"))
    with style():
        figure, axes = _new(2.9, f"{title} · DPO training", width=4.2)
        for (name, (steps, values)), (colour, marker, line) in zip(
            lines.items(), marks, strict=False
        ):
            # Marks show where few values are; many would hide the line.
            axes.plot(
                steps,
                values,
                line,
                color=COLOURS[colour],
                marker=marker if len(steps) < 12 else "",
                label=name,
            )
        axes.set_xlabel("optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.set_ylabel(unit)
        if unit.startswith("share"):
            axes.set_ylim(0, 1.03)
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _new(height: float, title: str, *, width: float = WIDTH) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    figure.suptitle(title, x=0.01, ha="left", fontsize=STYLE["axes.titlesize"], fontweight="bold")
    return figure, axes


def _key(label: str, colour: str, marker: str, *, filled: bool) -> Any:
    face = COLOURS[colour] if filled else COLOURS["ground"]
    return mpl.lines.Line2D(
        [],
        [],
        color=COLOURS[colour],
        marker=marker,
        markerfacecolor=face,
        linestyle="none",
        label=label,
    )


def _dots(
    axes: Axes, dots: Sequence[tuple[float, Estimate]], colour: str, marker: str, *, filled: bool
) -> None:
    places, estimates = [place for place, _ in dots], [estimate for _, estimate in dots]
    axes.hlines(
        places,
        [one.low for one in estimates],
        [one.high for one in estimates],
        color=COLOURS[colour],
        linewidth=1.2,
    )
    face = COLOURS[colour if filled else "ground"]
    axes.plot(
        [one.mean for one in estimates],
        places,
        marker,
        color=COLOURS[colour],
        markerfacecolor=face,
        markersize=5,
    )


def _cross(axes: Axes, points: Sequence[Point], colour: str, marker: str, name: str) -> None:
    x, y = [point.x.mean for point in points], [point.y.mean for point in points]
    thin: dict[str, Any] = {"color": colour, "linewidth": 0.9, "alpha": 0.7}
    axes.hlines(y, [point.x.low for point in points], [point.x.high for point in points], **thin)
    axes.vlines(x, [point.y.low for point in points], [point.y.high for point in points], **thin)
    size = 10 if marker == "*" else 6
    axes.plot(
        x,
        y,
        marker,
        color=colour,
        markersize=size,
        markeredgecolor=COLOURS["ground"],
        markeredgewidth=0.6,
        label=name,
    )


def _name_points(axes: Axes, points: Sequence[Point]) -> None:
    """Labels beside their marks, pushed apart vertically where they would touch, with a line to the
    mark they were pushed from.
    """
    low, high = axes.get_ylim()
    gap, right = 0.05 * (high - low), axes.transAxes.inverted()
    placed: list[float] = []
    line = {
        "arrowstyle": "-",
        "color": COLOURS["muted"],
        "linewidth": 0.6,
        "shrinkA": 0,
        "shrinkB": 3,
    }
    for point in sorted(points, key=lambda one: one.y.mean):
        y = max(point.y.mean, placed[-1] + gap) if placed else max(point.y.mean, low + gap / 2)
        placed.append(y)
        # Beyond the middle a label would run out of the axes.
        leftwards = right.transform(axes.transData.transform((point.x.mean, y)))[0] > 0.6
        axes.annotate(
            point.label,
            (point.x.mean, point.y.mean),
            xytext=(-9 if leftwards else 9, y),
            textcoords=("offset points", "data"),
            ha="right" if leftwards else "left",
            va="center",
            fontsize=8.5,
            bbox={"facecolor": COLOURS["ground"], "edgecolor": "none", "alpha": 0.75, "pad": 0.4},
            arrowprops=line if y - point.y.mean > gap / 2 else None,
        )


def _price_axis(axis: Any, set_scale: Any, values: Sequence[float]) -> None:
    """An axis of log-perplexity differences: linear around zero, logarithmic beyond."""
    set_scale("symlog", linthresh=LINEAR, linscale=0.6)
    low, high = min(*values, -LINEAR / 2), max(*values, LINEAR)
    axis.axes.set_xlim(1.15 * low, 1.3 * high)
    axis.set_major_locator(
        FixedLocator([tick for tick in TICKS if 1.15 * low <= tick <= 1.3 * high])
    )
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(
        FuncFormatter(lambda tick, _: f"{tick:+g}".replace("-", "−") if tick else "0")
    )


def _layer_lines(
    axes: Axes, lines: Sequence[tuple[str, NDArray[np.float64], str, str, str]]
) -> None:
    for name, values, colour, marker, line in lines:
        axes.plot(
            range(len(values)),
            values,
            line,
            marker=marker,
            markersize=4,
            color=COLOURS[colour],
            label=name,
        )
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
