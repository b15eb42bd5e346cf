"""The paper's figures 1 to 8 for any model, and the front of all interventions at several strengths
(METHOD §9).

    figure = figure_2b_ranked_share(table)   # a compared neuron table
    save(figure, Path("out/figure-2b"))      # out/figure-2b.png, .svg, .pdf

Every figure names its protocol and what it counts. "Reduction" is −Δ of the neurons whose
projection fell. Groups differ in hatch, marker and line besides colour, and so do the families of
the front, so that all of it survives a grey printer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ..errors import DialdownError
from ..neurons.ranks import Floats, Ranking, layer_effects, ranking
from ..neurons.statistics import percent_shifts, without_tails
from ..neurons.table import GROUPS, NeuronTable
from .drawing import (
    LOOKS,
    NO_GROUP,
    NO_GROUP_LOOK,
    Look,
    bars,
    counted,
    headline,
    layer_axis,
    percent,
    percent_axis,
    printable,
    readable,
    spread_keys,
    zero_line,
)
from .style import COLOURS, WIDTH, style

# A neuron that brings less than this share of the whole reduction is drawn as one of the tail.
NEGLIGIBLE = 1e-4
# Of the width of an axis of ranks: what a number beside a mark takes.
NUMBER_WIDTH = 0.05
PERCENT = "shift of the mean activation, (base − tuned) / base in %"


def figure_1_layer_effects(table: NeuronTable) -> Figure:
    """Opposing effects: what falls, what rises and the net, in each layer and summed up to it
    (figures 1 and 5).
    """
    up, down = layer_effects(table)
    layers = np.arange(len(up))
    with style():
        figure, (each, total) = _sheet(4.9, "Projection changes, falling and rising", table, rows=2)
        bars(each, layers, up, "vermillion", "////", label="rising neurons (Δ > 0)")
        bars(each, layers, down, "blue", "", label="falling neurons (Δ < 0)")
        each.plot(layers, up + down, "-o", color=COLOURS["ink"], markersize=4, label="net")
        summed: dict[str, Any] = {"markersize": 4}
        total.plot(
            layers,
            np.cumsum(up),
            "--^",
            color=COLOURS["vermillion"],
            label="rising, summed",
            **summed,
        )
        total.plot(
            layers, np.cumsum(down), "-v", color=COLOURS["blue"], label="falling, summed", **summed
        )
        total.plot(layers, np.cumsum(up + down), "-o", color=COLOURS["ink"], markersize=4)
        for axes in (each, total):
            zero_line(axes)
        each.set_ylabel("ΣΔ in the layer\n(residual units)")
        total.set_ylabel("ΣΔ up to the layer\n(residual units)")
        figure.align_ylabels()
        layer_axis(total)
        handles = [
            handle for axes in (each, total) for handle in axes.get_legend_handles_labels()[0]
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def figure_2a_group_contribution(table: NeuronTable) -> Figure:
    """Share of each group in the whole reduction, beside its share of the falling neurons (figures
    2a and 6a, table 5).
    """
    ranked = ranking(table)
    names = _groups_present(ranked)
    sums = np.bincount(ranked.group, weights=ranked.reduction, minlength=len(GROUPS) + 1)
    counts = np.bincount(ranked.group, minlength=len(GROUPS) + 1)
    reduction, neurons = sums / max(sums.sum(), np.finfo(float).tiny), counts / max(counts.sum(), 1)
    with style():
        figure, (axes,) = _sheet(3.5, "Contribution of each group to the reduction", table)
        for place, name in enumerate(names):
            look = _look(name)
            bars(axes, [place], reduction[[place]], look.colour, look.hatch, label=name)
            _boxed(axes, f"{100 * reduction[place]:.1f} %", place)
        spots = np.arange(len(names))
        across: dict[str, Any] = {
            "color": COLOURS["ink"],
            "linewidth": 2.0,
            "label": "share of the falling neurons",
        }
        axes.hlines(neurons[: len(names)], spots - 0.46, spots + 0.46, **across)
        labels = [f"{name}\n{count:,}" for name, count in zip(names, counts, strict=False)]
        axes.set_xticks(spots, labels)
        axes.set_xlabel("group, and its neurons whose projection falls")
        axes.grid(visible=False, axis="x")
        axes.tick_params(axis="x", length=0)
        axes.set_ylim(0, 1.18 * max(0.1, reduction.max(), neurons.max()))
        percent_axis(axes, "share of the whole reduction")
        figure.legend(*_only(axes, "share of the falling neurons"), loc="outside lower center")
    return figure


def figure_2b_ranked_share(table: NeuronTable) -> Figure:
    """Share of each group among the k neurons of largest reduction, as k grows (figures 2b and 6b).

    The axis of k is logarithmic: on a linear one the few hundred neurons that matter most are a
    hair's breadth.
    """
    ranked = ranking(table)
    places = ranked.places()
    # The share of a handful of neurons jumps between 0 and 1 and says nothing.
    places = places[places >= min(10, len(ranked.order)) - 1]
    with style():
        figure, (axes,) = _sheet(3.6, "Groups among the neurons of largest reduction", table)
        for number, name in enumerate(_groups_present(ranked)):
            look = _look(name)
            share = np.cumsum(ranked.group == number)[places] / (places + 1)
            mark: dict[str, Any] = {"marker": look.marker, "markevery": (number * 7, 30)}
            axes.plot(places + 1, share, look.line, color=COLOURS[look.colour], label=name, **mark)
        _rank_axis(
            axes,
            ranked,
            "k, neurons ranked by reduction",
            first=int(places[0]) + 1 if len(places) else 1,
        )
        axes.set_ylim(bottom=0)
        percent_axis(axes, "share among the top k")
        figure.legend(loc="outside lower center", ncols=5)
    return figure


def figure_2c_group_shift(table: NeuronTable) -> Figure:
    """How the mean activations of each group moved, in % of the base's mean: percentiles, median
    and mean (figure 6c).

    Drawn are `percent_shifts` between the 10th and 90th percentile of all neurons, positive towards
    zero. Only neurons whose projection fell are in a group, so the side follows from the group, and
    only the size is a finding.
    """
    shift = without_tails(percent_shifts(table))
    with style():
        figure, (axes,) = _sheet(3.3, "Shift of mean activations by group", table)
        labels = []
        for place, (name, mask) in enumerate(table.groups().items()):
            inside = shift[mask & ~np.isnan(shift)]
            labels.append(f"{name}\n{inside.size:,} neurons")
            if inside.size:
                _spread(axes, place, inside, LOOKS[name])
        zero_line(axes, vertical=True)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.set_xlabel(f"{PERCENT}\n(where the projection falls; 10th to 90th percentile of all)")
        figure.legend(
            handles=spread_keys(),
            loc="outside lower center",
            ncols=4,
            columnspacing=1.2,
            handletextpad=0.5,
        )
    return figure


def figure_3_top_aligned(table: NeuronTable, *, count: int = 100) -> Figure:
    """The mean activations of the neurons of highest cosine with the direction, before and after
    tuning (figure 3).

    Args:
        table: a compared neuron table.
        count: how many; all, where the model has fewer.

    Raises:
        DialdownError: no tuned model was compared.
    """
    cosine = table.grid("cosine").ravel()
    top = np.argsort(-cosine, kind="stable")[:count]
    before, after = (table.grid(column).ravel()[top] for column in ("mean_base", "mean_tuned"))
    moved, ranks = after - before, np.arange(1, len(top) + 1)
    falls, rises = (
        f"{word} ({count})"
        for word, count in (("falls", (moved < 0).sum()), ("rises", (moved > 0).sum()))
    )
    hollow: dict[str, Any] = {
        "color": COLOURS["ink"],
        "markerfacecolor": COLOURS["ground"],
        "markersize": 4,
    }
    with style():
        figure, (axes, change) = _sheet(
            4.9, f"The {len(top)} neurons most aligned with the direction", table, rows=2
        )
        axes.vlines(ranks, before, after, color=COLOURS["muted"], linewidth=1.0)
        axes.plot(ranks, before, "o", label="base", **hollow)
        axes.plot(ranks, after, "D", color=COLOURS["blue"], markersize=2.8, label="tuned")
        bars(change, ranks, np.minimum(moved, 0), "blue", "", label=falls)
        bars(change, ranks, np.maximum(moved, 0), "vermillion", "////", label=rises)
        for panel, values in ((axes, np.concatenate([before, after])), (change, moved)):
            zero_line(panel)
            readable(panel, values)
        axes.set_ylabel("mean activation")
        change.set_ylabel("tuned − base")
        change.set_xlabel(f"rank by cosine ({cosine[top[0]]:.2f} to {cosine[top[-1]]:.2f})")
        change.set_xlim(0, len(top) + 1)
        handles = [*axes.get_legend_handles_labels()[0], *change.get_legend_handles_labels()[0]]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def figure_4_shift_distribution(table: NeuronTable) -> Figure:
    """Distribution of the shifts of mean activations in % of the base's mean, of all neurons and
    layer by layer (figure 4).

    Above, `percent_shifts` between their 10th and 90th percentile, with their mean ± one standard
    deviation; below, the same of each layer between percentiles of its own, as in
    `statistics.shifts`.
    """
    percents = percent_shifts(table)
    kept = without_tails(percents)
    inside = kept[~np.isnan(kept)]
    with style():
        figure, (axes, layers) = _sheet(
            5.4, "Shift of mean activations", table, rows=2, shared=False
        )
        if inside.size:
            heights, edges = np.histogram(inside, bins=81)
            axes.stairs(heights, edges, color=COLOURS["ink"], linewidth=1.0)
            _mean_lines(axes, float(inside.mean()), float(inside.std()))
            axes.set_ylim(0, 1.08 * heights.max())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.0f}"))
        axes.set_ylabel("neurons")
        axes.set_xlabel(f"{PERCENT}\n(10th to 90th percentile)")
        _layer_spread(layers, percents)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def figure_7_lower_ranks(
    table: NeuronTable, *, decoded: Mapping[tuple[int, int], str] | None = None
) -> Figure:
    """How the reduction is spread over ranks, and what some neurons say (figure 7).

    Above, the share that the first k neurons bring together, with the ranks of 50 and 90 %; below,
    the share of the neuron at that rank alone. Shaded are the ranks at which no neuron brings 0.01
    % of the whole.

    Args:
        table: a compared neuron table.
        decoded: (layer, neuron) to the tokens it writes (`logit_lens`), to be numbered in the
            figure and listed below it.

    Raises:
        DialdownError: no tuned model was compared, or a decoded neuron's projection did not fall.
    """
    ranked = ranking(table)
    known = _decoded_ranks(table, ranked, decoded or {})
    with style():
        figure, (total, single) = _sheet(
            4.7 + 0.17 * len(known), "Reduction by rank", table, rows=2
        )
        places = ranked.places()
        total.plot(places + 1, ranked.cumulated[places], "-", color=COLOURS["blue"])
        single.plot(places + 1, ranked.share[places], "-", color=COLOURS["blue"])
        if len(places):
            _mark_ranks(total, single, ranked)
        _number(
            single,
            {rank: ranked.share[rank - 1] for rank in known},
            width=np.log10(max(10, len(ranked.order))),
        )
        _rank_axis(single, ranked, "rank by reduction, largest first")
        total.set_ylim(0, 1.05)
        percent_axis(total, "first k together")
        single.set_ylabel("neuron alone")
        if known:
            figure.supxlabel(_listed(known), x=0.02, ha="left", fontsize=8, linespacing=1.35)
    return figure


def figure_8_layer_group(table: NeuronTable) -> Figure:
    """The reduction of each layer, stacked by group (figure 8)."""
    change = -table.grid("projection_change")
    falling = table.grid("projection_change") < 0
    groups = table.groups()
    outside = falling & ~np.logical_or.reduce(list(groups.values()))
    if outside.any():
        groups = {**groups, NO_GROUP: outside}
    with style():
        figure, (axes,) = _sheet(3.6, "Reduction by layer and group", table)
        bottom = np.zeros(table.shape[0])
        for name, mask in groups.items():
            look = _look(name)
            heights = np.where(mask, change, 0.0).sum(1)
            bars(
                axes,
                np.arange(len(heights)),
                heights,
                look.colour,
                look.hatch,
                label=name,
                bottom=bottom,
            )
            bottom += heights
        axes.set_ylabel("reduction, −ΣΔ (residual units)")
        axes.grid(visible=False, axis="x")
        layer_axis(axes)
        figure.legend(loc="outside lower center", ncols=5)
    return figure


def _sheet(
    height: float, title: str, table: NeuronTable, *, rows: int = 1, shared: bool = True
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height))
    panels: list[Axes] = list(figure.subplots(rows, 1, sharex=shared, squeeze=False)[:, 0])
    headline(figure, panels[0], f"{title} · {table.protocol}", counted(table))
    return figure, panels


def _look(name: str) -> Look:
    return LOOKS.get(name, NO_GROUP_LOOK)


def _groups_present(ranked: Ranking) -> list[str]:
    return [*GROUPS, *([NO_GROUP] if (ranked.group == len(GROUPS)).any() else [])]


def _boxed(axes: Axes, text: str, place: int) -> None:
    """A number at the foot of a bar, where no other mark can be taken for what it measures."""
    box = {"facecolor": COLOURS["ground"], "edgecolor": "none", "pad": 1.5}
    axes.annotate(
        text, (place, 0), xytext=(0, 6), textcoords="offset points", ha="center", bbox=box
    )


def _only(axes: Axes, label: str) -> tuple[list[Any], list[str]]:
    handles, labels = axes.get_legend_handles_labels()
    return [handles[labels.index(label)]], [label]


def _rank_axis(axes: Axes, ranked: Ranking, label: str, *, first: int = 1) -> None:
    axes.set_xscale("log")
    axes.set_xlim(0.9 * first, max(10 * first, 1.1 * len(ranked.order)))
    axes.xaxis.set_major_locator(LogLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.0f}"))
    axes.set_xlabel(f"{label} ({len(ranked.order):,} fall)")


def _spread(axes: Axes, place: int, values: Floats, look: Look) -> None:
    """Percentiles 10 to 90 thin, quartiles thick, median as a bar across, mean as the group's
    mark.
    """
    p10, p25, p50, p75, p90 = np.percentile(values, [10, 25, 50, 75, 90])
    colour = COLOURS[look.colour]
    axes.hlines(place, p10, p90, color=colour, linewidth=1.4)
    axes.hlines(place, p25, p75, color=colour, linewidth=7, alpha=0.45)
    axes.vlines(p50, place - 0.24, place + 0.24, color=COLOURS["ink"], linewidth=1.6)
    axes.plot(
        values.mean(),
        place,
        look.marker,
        color=colour,
        markeredgecolor=COLOURS["ground"],
        markersize=7,
    )


def _mean_lines(axes: Axes, mean: float, deviation: float) -> None:
    axes.axvline(mean, color=COLOURS["ink"], linewidth=1.2, label="mean")
    for side in (-1, 1):
        label = "± 1 standard deviation" if side > 0 else None
        axes.axvline(
            mean + side * deviation,
            color=COLOURS["ink"],
            linewidth=1.0,
            linestyle="--",
            label=label,
        )


def _layer_spread(axes: Axes, percents: Floats) -> None:
    # Bars would otherwise end at the edge of the axes, as if cut off.
    axes.use_sticky_edges = False
    ends = [0.0]
    for layer, values in enumerate(without_tails(row) for row in percents):
        kept = values[~np.isnan(values)]
        if not kept.size:
            continue
        low, high, mean, deviation = (
            float(each) for each in (kept.min(), kept.max(), kept.mean(), kept.std())
        )
        axes.bar(layer, high - low, 0.8, bottom=low, color=COLOURS["blue"], alpha=0.22, linewidth=0)
        axes.vlines(
            layer,
            mean - deviation,
            mean + deviation,
            color=COLOURS["ink"],
            linewidth=1.0,
            linestyle="--",
        )
        axes.plot(layer, mean, "o", color=COLOURS["ink"], markersize=3.5)
        ends += [low, high, mean - deviation, mean + deviation]
    zero_line(axes)
    readable(axes, np.array(ends))
    axes.set_ylabel("in %, by layer")
    layer_axis(axes)


def _mark_ranks(total: Axes, single: Axes, ranked: Ranking) -> None:
    n = len(ranked.order)
    for share in (0.5, 0.9):
        rank = int(np.searchsorted(ranked.cumulated, share)) + 1
        total.plot([1, rank, rank], [share, share, 0], ":", color=COLOURS["muted"], linewidth=1.1)
        total.annotate(
            f"{rank:,} neurons bring {share:.0%}".replace("%", " %"),
            (1, share),
            xytext=(5, 3),
            textcoords="offset points",
            fontsize=8,
        )
    first = int(np.searchsorted(-ranked.share, -NEGLIGIBLE)) + 1
    if first < n:
        for axes in (total, single):
            label = f"no neuron alone brings {percent(NEGLIGIBLE)}"
            axes.axvspan(
                first, n, color=COLOURS["grid"], alpha=0.7, linewidth=0, zorder=0, label=label
            )
        single.legend(loc="lower left")
    single.set_yscale("log")
    single.set_ylim(max(float(ranked.share[-1]), NEGLIGIBLE / 100) / 2, 3 * float(ranked.share[0]))
    single.yaxis.set_major_formatter(FuncFormatter(percent))
    single.yaxis.set_minor_locator(NullLocator())


def _decoded_ranks(
    table: NeuronTable, ranked: Ranking, decoded: Mapping[tuple[int, int], str]
) -> dict[int, tuple[int, int, str]]:
    """Rank to layer, neuron and tokens, in order of rank."""
    ranks = (
        {int(place): rank for rank, place in enumerate(ranked.order, start=1)} if decoded else {}
    )
    found = {}
    for (layer, neuron), tokens in decoded.items():
        inside = 0 <= layer < table.shape[0] and 0 <= neuron < table.shape[1]
        rank = ranks.get(layer * table.shape[1] + neuron) if inside else None
        if rank is None:
            raise DialdownError(
                f"Neuron {neuron} of layer {layer} is not among those whose projection fell, so it "
                "has no rank: decode one of these."
            )
        found[rank] = (layer, neuron, tokens)
    return dict(sorted(found.items()))


def _number(axes: Axes, shares: Mapping[int, float], *, width: float) -> None:
    """Numbers beside the neurons at these ranks, in steps above each other where ranks lie too near
    for two of them.
    """
    before, step = -np.inf, 0
    for number, (rank, share) in enumerate(shares.items(), start=1):
        step = step + 1 if np.log10(rank) - before < NUMBER_WIDTH * width else 0
        before = np.log10(rank)
        axes.plot(rank, share, "o", color=COLOURS["vermillion"], markeredgecolor=COLOURS["ground"])
        place = (4, 5 + 10 * step)
        axes.annotate(
            str(number), (rank, share), xytext=place, textcoords="offset points", fontsize=8
        )


def _listed(known: Mapping[int, tuple[int, int, str]]) -> str:
    return "\n".join(
        f"{number}  rank {rank:,}, layer {layer}, neuron {neuron}: {printable(tokens.strip())}"
        for number, (rank, (layer, neuron, tokens)) in enumerate(known.items(), start=1)
    )
