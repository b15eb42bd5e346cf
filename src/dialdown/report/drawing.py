"""What the paper's figures and the front are drawn with: titles, bars, axes, and writing a figure
for print.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ..files import write_atomic
from ..neurons.ranks import Floats
from ..neurons.table import NeuronTable
from .style import COLOURS, STYLE

TOKENS_SHOWN = 52  # characters of a decoded neuron's tokens that fit beside its name


class Look(NamedTuple):
    """How a group is drawn: warm colours write along the direction, cool ones against it."""

    colour: str
    hatch: str
    marker: str
    line: str


LOOKS = {
    "TP": Look("vermillion", "", "o", "-"),
    "TN": Look("orange", "////", "s", "--"),
    "AP": Look("green", "\\\\\\\\", "^", "-."),
    "AN": Look("blue", "xxxx", "D", ":"),
}
NO_GROUP = "none"
NO_GROUP_LOOK = Look("muted", "", "x", "-")
"""A cosine or a base mean of exactly zero belongs to no group (METHOD §3), and may still have changed."""


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG (200 dpi) and SVG on white, the same bytes for the same figure. Its
    layout is fixed by this.

    Args:
        figure: what to write.
        path: without a suffix; `.png` and `.svg` are added.

    Returns:
        The two paths.

    Raises:
        DialdownError: the disk is full or the folder cannot be written.
    """
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
    }
    settings = {**STYLE, "savefig.transparent": False, "svg.hashsalt": "dialdown"}
    with mpl.rc_context(settings):
        # Finding the layout takes longer than drawing, and every format would find it again.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    written = []
    for suffix, facts in metadata.items():
        target = path.with_name(f"{path.name}.{suffix}")

        def write(partial: Path, suffix: str = suffix, facts: dict[str, Any] = facts) -> None:
            figure.savefig(partial, format=suffix, dpi=200, facecolor="white", metadata=facts)

        with mpl.rc_context(settings):
            write_atomic(target, write)
        written.append(target)
    return written


def headline(figure: Figure, first: Axes, title: str, count: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=STYLE["axes.titlesize"], fontweight="bold")
    # A title of the axes would start at the axes, and with wide labels run off the page: it only
    # keeps the line free.
    first.set_title(" ", fontsize=8)
    place: dict[str, Any] = {
        "xycoords": ("figure fraction", "axes fraction"),
        "xytext": (0, 6),
        "textcoords": "offset points",
    }
    note = first.annotate(
        count, (0.01, 1), fontsize=8, color=COLOURS["muted"], annotation_clip=False, **place
    )
    note.set_in_layout(False)


def counted(table: NeuronTable) -> str:
    """What the figures of a table count: its direction, neurons, and the positions their means are
    over.
    """
    layers, neurons = table.shape
    parts = [str(table.record["direction"]["name"]), f"{layers:,} × {neurons:,} neurons"]
    if "count_base" in table.record:
        parts.append(
            f"means over {table.record['count_base']:,} and {table.record['count_tuned']:,} "
            "positions"
        )
    return ", ".join(parts)


def bars(axes: Axes, places: Any, heights: Floats, colour: str, hatch: str, **options: Any) -> None:
    face = COLOURS["ground" if hatch else colour]
    axes.bar(
        places,
        heights,
        0.8,
        facecolor=face,
        edgecolor=COLOURS[colour],
        linewidth=0.8,
        hatch=hatch,
        **options,
    )


def zero_line(axes: Axes, *, vertical: bool = False) -> None:
    (axes.axvline if vertical else axes.axhline)(0, color=COLOURS["muted"], linewidth=0.8, zorder=1)


def layer_axis(axes: Axes) -> None:
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def percent_axis(axes: Axes, label: str) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(percent))
    axes.set_ylabel(label)


def percent(share: float, _: int = 0) -> str:
    return f"{100 * share:.10f}".rstrip("0").rstrip(".") + " %"


def spread_keys() -> list[Any]:
    line = mpl.lines.Line2D
    muted: dict[str, Any] = {"color": COLOURS["muted"]}
    return [
        line([], [], linewidth=1.4, label="10th–90th", **muted),
        line([], [], linewidth=7, alpha=0.45, label="25th–75th", **muted),
        line(
            [],
            [],
            color=COLOURS["ink"],
            marker="|",
            markersize=10,
            markeredgewidth=1.6,
            linestyle="none",
            label="median",
        ),
        line([], [], marker="o", linestyle="none", label="mean", **muted),
    ]


def readable(axes: Axes, values: Floats) -> None:
    """Where a few values dwarf the others, a scale that is linear around zero and logarithmic
    beyond.
    """
    sizes = np.abs(values[values != 0])
    if not len(sizes) or sizes.max() < 20 * np.median(sizes):
        return
    small, large = (int(np.floor(np.log10(size))) for size in (np.median(sizes), sizes.max()))
    axes.set_yscale("symlog", linthresh=10.0**small, linscale=0.8)
    axes.set_ylim(2 * min(values.min(), 0), 2 * max(values.max(), 0))
    ticks = 10.0 ** np.arange(small, large + 1)
    axes.yaxis.set_major_locator(FixedLocator([*-ticks[::-1], 0, *ticks]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}".replace("-", "−")))


def printable(text: str) -> str:
    """A token list on one line, cut to what fits; a box for what the figure's font cannot draw."""
    glyphs = get_font(findfont(STYLE["font.family"])).get_charmap()
    drawn = "".join(one if one.isprintable() and ord(one) in glyphs else "□" for one in text)
    return drawn if len(drawn) <= TOKENS_SHOWN else f"{drawn[: TOKENS_SHOWN - 1]}…"
