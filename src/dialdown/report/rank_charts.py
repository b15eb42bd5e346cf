"""The paper's figures over ranks: who reduces most, and how the reduction is spread (METHOD §9).

The first rank is the neuron whose projection fell most. Drawn are at most PLACES ranks, and those
of decoded neurons: never a point for every neuron.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import altair as alt
import numpy as np
import polars as pl

from ..neurons.statistics import Ranking, ranking
from ..neurons.table import GROUPS, NeuronTable
from ..terminal import printable
from .chart_style import COLOURS, LINE_KEYS, NO_GROUP, WIDTH, Chart, channel, ticked
from .neuron_charts import group_scales, groups_present, sheet, stacked, tooltips

# A neuron that brings less than this share of the whole reduction is drawn as one of the tail.
NEGLIGIBLE = 1e-4
# Of the width of an axis of ranks: what a number beside a mark takes.
NUMBER_WIDTH = 0.05
LINE = 66  # characters of a decoded neuron's line below the figure, as wide as that is


def figure_2b_ranked_share(table: NeuronTable) -> Chart:
    """Share of each group among the k neurons of largest reduction, as k grows (figures 2b and 6b).

    The axis of k is logarithmic: on a linear one the few hundred neurons that matter most are a
    hair's breadth.
    """
    ranked = ranking(table)
    places = ranked.places()
    # The share of a handful of neurons jumps between 0 and 1 and says nothing.
    places = places[places >= min(10, len(ranked.order)) - 1]
    names = groups_present(ranked)
    frame = pl.concat(
        pl.DataFrame({
            "group": name,
            "k": places + 1,
            "share": np.cumsum(ranked.group == number)[places] / (places + 1),
        })
        for number, name in enumerate(names)
    )  # fmt: skip
    looks, first = group_scales(names), int(places[0]) + 1 if len(places) else 1
    x = _rank_axis(ranked, "k, neurons ranked by reduction", first=first)
    y = alt.Y("share:Q", axis=alt.Axis(format="~%", title="share among the top k"))
    chart = (
        alt.Chart(frame)
        .mark_line(strokeWidth=1.8)
        .encode(
            x=x("k:Q"),
            y=y,
            color=alt.Color("group:N", scale=looks["colour"], legend=LINE_KEYS),
            strokeDash=alt.StrokeDash("group:N", scale=looks["dash"], legend=LINE_KEYS),
        )
    )
    return sheet(chart, "Groups among the neurons of largest reduction", table)


def figure_7_lower_ranks(
    table: NeuronTable, *, decoded: Mapping[tuple[int, int], str] | None = None
) -> Chart:
    """How the reduction is spread over ranks, and what some neurons say (figure 7).

    Above, the share that the first k neurons bring together, with the ranks of 50 and 90 %; below,
    the share of the neuron at that rank alone. Shaded are the ranks at which no neuron brings 0.01
    % of the whole. `decoded` are (layer, neuron) and the tokens it writes, numbered in the figure
    and listed below it.
    """
    ranked = ranking(table)
    known = _decoded_ranks(table, ranked, decoded or {})
    frame = _ranks_frame(table, ranked, known)
    x = _rank_axis(ranked, "rank by reduction, largest first")
    shares = ticked([0, 0.2, 0.4, 0.6, 0.8, 1], "~%", "first k together")
    together = alt.Y("together:Q", scale=alt.Scale(domain=[0, 1.05]), axis=shares)
    low, high = ranked.share[[-1, 0]].tolist() if len(ranked.order) else (0.01, 1.0)
    ends = [max(low, NEGLIGIBLE / 100) / 2, 3 * high]
    alone = alt.Y(
        "alone:Q",
        scale=alt.Scale(type="log", domain=ends, clamp=True, nice=False),
        axis=alt.Axis(format="~%", title="neuron alone", tickCount=5),
    )
    facts = tooltips(frame.drop("number", "step"), percent=("alone", "together"))
    base = alt.Chart(frame).encode(x=x("rank:Q"), tooltip=facts)
    line = base.mark_line(color=COLOURS["blue"], strokeWidth=1.8)
    numbered = base.transform_filter("datum.number > 0").encode(y=alone)
    tail, shaded = _tail(ranked, x)
    upper = alt.layer(line.encode(y=together), *tail, *_marked_ranks(ranked, x, together))
    lower = alt.layer(
        line.encode(y=alone),
        *tail,
        numbered.mark_point(
            filled=True, size=55, opacity=1, color=COLOURS["vermillion"], stroke=COLOURS["ground"]
        ),
        numbered.mark_text(dy=alt.expr("-10 - 10 * datum.step"), fontSize=10).encode(
            text=alt.Text("number:Q")
        ),
    )
    panels = [*stacked(upper, lower).vconcat, *([_listed(known)] if known else [])]
    return sheet(alt.vconcat(*panels), "Reduction by rank", table, shaded)


def _rank_axis(ranked: Ranking, label: str, *, first: int = 1) -> Callable[[str], alt.X]:
    """A logarithmic axis of ranks, for a field."""
    domain = [0.9 * first, max(10 * first, 1.1 * len(ranked.order))]
    scale = alt.Scale(type="log", domain=domain, nice=False)
    ticks = [10**power for power in range(9) if domain[0] <= 10**power <= domain[1]]
    title = f"{label} ({len(ranked.order):,} fall)"
    return channel(alt.X, scale=scale, axis=ticked(ticks, ",d", title))


def _ranks_frame(
    table: NeuronTable, ranked: Ranking, known: Mapping[int, tuple[int, int, str]]
) -> pl.DataFrame:
    """At most PLACES ranks and those of decoded neurons, each with what it is."""
    places = np.union1d(ranked.places(), np.array([rank - 1 for rank in known], dtype=np.int64))
    groups, order = [*GROUPS, NO_GROUP], ranked.order[places]
    numbers = {rank: number for number, rank in enumerate(known, start=1)}
    steps = _steps(list(known), NUMBER_WIDTH * np.log10(max(10, len(ranked.order))))
    return pl.DataFrame({
        "rank": places + 1,
        "layer": order // table.shape[1],
        "neuron": order % table.shape[1],
        "group": [groups[number] for number in ranked.group[places]],
        "Δ": -ranked.reduction[places],
        "alone": ranked.share[places] if len(places) else np.array([]),
        "together": ranked.cumulated[places],
        "tokens": [known[rank][2] if rank in known else "" for rank in (places + 1).tolist()],
        "number": [numbers.get(rank, 0) for rank in (places + 1).tolist()],
        "step": [steps.get(rank, 0) for rank in (places + 1).tolist()],
    })  # fmt: skip


def _steps(ranks: Sequence[int], width: float) -> dict[int, int]:
    """How high above its mark a number stands: on the next step where the one before it is too
    near on the logarithmic axis.
    """
    steps: dict[int, int] = {}
    for before, rank in zip([0, *ranks], ranks, strict=False):
        near = before and np.log10(rank / before) < width
        steps[rank] = steps[before] + 1 if near else 0
    return steps


def _tail(ranked: Ranking, x: Callable[[str], alt.X]) -> tuple[list[alt.Chart], str]:
    """The ranks at which no neuron brings a share worth speaking of, shaded, and what that says."""
    first, last = int(np.searchsorted(-ranked.share, -NEGLIGIBLE)) + 1, len(ranked.order)
    if first >= last:
        return [], ""
    rect = alt.Chart(pl.DataFrame({"first": [first], "last": [last]})).mark_rect(
        color=COLOURS["muted"], opacity=0.15
    )
    words = f"shaded: no neuron alone brings {NEGLIGIBLE:.2%}"
    return [rect.encode(x=x("first:Q"), x2=alt.X2("last"))], words


def _marked_ranks(ranked: Ranking, x: Callable[[str], alt.X], y: alt.Y) -> list[alt.Chart]:
    """From which rank on the first neurons bring half and 90 % of the reduction."""
    if not len(ranked.order):
        return []
    shares = [0.5, 0.9]
    ranks = [int(np.searchsorted(ranked.cumulated, share)) + 1 for share in shares]
    marks = zip(ranks, shares, strict=True)
    data = pl.DataFrame({
        "rank": ranks,
        "together": shares,
        "first": 1,
        "none": 0.0,
        "words": [f"{rank:,} neurons bring {share:.0%}" for rank, share in marks],
    })  # fmt: skip
    rules = alt.Chart(data).mark_rule(strokeDash=[2, 2], color=COLOURS["muted"])
    text = alt.Chart(data).mark_text(align="left", dx=5, dy=-7)
    return [
        rules.encode(x=x("first:Q"), x2=alt.X2("rank"), y=y),
        rules.encode(x=x("rank:Q"), y=y, y2=alt.Y2("none")),
        text.encode(x=x("first:Q"), y=y, text=alt.Text("words:N")),
    ]


def _decoded_ranks(
    table: NeuronTable, ranked: Ranking, decoded: Mapping[tuple[int, int], str]
) -> dict[int, tuple[int, int, str]]:
    """Rank to layer, neuron and tokens, in order of rank."""
    places = {layer * table.shape[1] + neuron: (layer, neuron) for layer, neuron in decoded}
    ranks = np.flatnonzero(np.isin(ranked.order, [*places])) + 1
    known = {rank: places[int(ranked.order[rank - 1])] for rank in ranks.tolist()}
    return {
        rank: (*neuron, " ".join(printable(decoded[neuron]).split()))
        for rank, neuron in known.items()
    }


def _listed(known: Mapping[int, tuple[int, int, str]]) -> alt.Chart:
    """The numbered neurons, a line each, below the figure."""
    whole = [
        f"{number}  rank {rank:,}, layer {layer}, neuron {neuron}: {tokens}"
        for number, (rank, (layer, neuron, tokens)) in enumerate(known.items(), start=1)
    ]
    lines = [line if len(line) <= LINE else f"{line[: LINE - 1]}…" for line in whole]
    frame = pl.DataFrame({"line": lines, "place": range(len(lines))})
    text = alt.Chart(frame).mark_text(align="left", fontSize=10, x=0)
    chart: alt.Chart = text.encode(
        y=alt.Y("place:O", axis=None, scale=alt.Scale(padding=0)), text=alt.Text("line:N")
    ).properties(width=WIDTH, height=alt.Step(14))
    return chart
