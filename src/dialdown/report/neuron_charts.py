"""The paper's figures 1 to 8 for any model (METHOD §9).

    save(figure_2b_ranked_share(table), Path("figures/figure-2b"))   # a compared neuron table

Every figure names its protocol and what it counts. "Reduction" is −Δ of the neurons whose
projection fell. What is drawn are sums, shares and percentiles, or at most PLACES ranks: never a
point for every neuron.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from ..errors import DialdownError
from ..neurons.ranks import Floats, Ranking, layer_effects, ranking
from ..neurons.statistics import percent_shifts, without_tails
from ..neurons.table import GROUPS, NeuronTable
from ..terminal import printable
from .chart_style import (
    COLOURS,
    DASHES,
    GROUP_LOOKS,
    LINE_KEYS,
    NO_GROUP,
    WIDTH,
    Chart,
    Look,
    channel,
    readable,
    scales,
    ticked,
    titled,
    zero_line,
)

# A neuron that brings less than this share of the whole reduction is drawn as one of the tail.
NEGLIGIBLE = 1e-4
# Of the width of an axis of ranks: what a number beside a mark takes.
NUMBER_WIDTH = 0.05
TOKENS_SHOWN = 60  # characters of a decoded neuron's tokens below the figure
PERCENT = "shift of the mean activation, (base − tuned) / base in %"
EFFECTS = (
    Look("rising neurons (Δ > 0)", "vermillion", "triangle-up", "--"),
    Look("falling neurons (Δ < 0)", "blue", "triangle-down"),
    Look("net", "ink", "circle"),
)
LAYER = alt.X("layer:O", axis=alt.Axis(labelAngle=0, title="layer"))


def figure_1_layer_effects(table: NeuronTable) -> Chart:
    """Opposing effects: what falls, what rises and the net, in each layer and summed up to it
    (figures 1 and 5).
    """
    rising, falling = layer_effects(table)
    sums = (rising, falling, rising + falling)
    frame = pl.concat(
        pl.DataFrame({
            "layer": range(len(values)),
            "what": look.label,
            "dash": [DASHES[look.dash]] * len(values),
            "value": values,
            "summed": np.cumsum(values),
            "rising": rising,
            "falling": falling,
            "net": rising + falling,
            "net up to here": np.cumsum(rising + falling),
        })
        for look, values in zip(EFFECTS, sums, strict=True)
    )  # fmt: skip
    colour = alt.Color("what:N", scale=scales(EFFECTS)["colour"])
    base = alt.Chart(frame).encode(x=LAYER, color=colour, tooltip=_told(frame))
    net = f"datum.what === '{EFFECTS[2].label}'"
    each = alt.layer(
        base.transform_filter(f"!({net})")
        .mark_bar(fillOpacity=0.75)
        .encode(y=alt.Y("value:Q", title=["ΣΔ in the layer", "(residual units)"])),
        base.transform_filter(net).mark_line(point=_dots(30)).encode(y="value:Q"),
        zero_line("y"),
    )
    total = alt.layer(
        base.mark_line(point=_dots(30)).encode(
            y=alt.Y("summed:Q", title=["ΣΔ up to the layer", "(residual units)"]),
            strokeDash=alt.StrokeDash("dash:N", scale=None),
        ),
        zero_line("y"),
    )
    return _sheet(_stacked(each, total), "Projection changes, falling and rising", table)


def figure_2a_group_contribution(table: NeuronTable) -> Chart:
    """Share of each group in the whole reduction, beside its share of the falling neurons (figures
    2a and 6a, table 5).
    """
    ranked = ranking(table)
    names = _groups_present(ranked)
    sums = np.bincount(ranked.group, weights=ranked.reduction, minlength=len(GROUPS) + 1)
    counts = np.bincount(ranked.group, minlength=len(GROUPS) + 1)
    frame = pl.DataFrame({
        "group": names,
        "neurons": counts[: len(names)],
        "reduction": (sums / max(sums.sum(), np.finfo(float).tiny))[: len(names)],
        "share of the falling neurons": (counts / max(counts.sum(), 1))[: len(names)],
    }).with_columns(place=pl.format("{}\n{}", "group", "neurons"))  # fmt: skip
    axis = alt.Axis(
        labelAngle=0,
        labelExpr="split(datum.label, '\\n')[0] + '  (' + "
        "format(+split(datum.label, '\\n')[1], ',') + ')'",
        title="group, and its neurons whose projection falls",
    )
    x = alt.X("place:O", sort=None, axis=axis)
    share = alt.Axis(format="~%", title="share of the whole reduction")
    base = alt.Chart(frame).encode(x=x, tooltip=_told(frame.drop("place")))
    chart = alt.layer(
        base.mark_bar(fillOpacity=0.75).encode(
            y=alt.Y("reduction:Q", axis=share),
            color=alt.Color("group:N", scale=_group_scales(names)["colour"], legend=None),
        ),
        base.mark_tick(thickness=2.5, color=COLOURS["ink"], opacity=1).encode(
            y="share of the falling neurons:Q"
        ),
        base.mark_text(dy=-8, baseline="bottom").encode(
            y=alt.Y("top:Q"), text=alt.Text("reduction:Q", format=".1%")
        ),
    ).transform_calculate(top="max(datum.reduction, datum['share of the falling neurons'])")
    return _sheet(
        chart,
        "Contribution of each group to the reduction",
        table,
        "bar: share of the reduction; line: share of the falling neurons",
    )


def figure_2b_ranked_share(table: NeuronTable) -> Chart:
    """Share of each group among the k neurons of largest reduction, as k grows (figures 2b and 6b).

    The axis of k is logarithmic: on a linear one the few hundred neurons that matter most are a
    hair's breadth.
    """
    ranked = ranking(table)
    places = ranked.places()
    # The share of a handful of neurons jumps between 0 and 1 and says nothing.
    places = places[places >= min(10, len(ranked.order)) - 1]
    names = _groups_present(ranked)
    frame = pl.concat(
        pl.DataFrame({
            "group": name,
            "k": places + 1,
            "share": np.cumsum(ranked.group == number)[places] / (places + 1),
        })
        for number, name in enumerate(names)
    )  # fmt: skip
    looks, first = _group_scales(names), int(places[0]) + 1 if len(places) else 1
    x = _rank_axis(ranked, "k, neurons ranked by reduction", first=first)
    y = alt.Y("share:Q", axis=alt.Axis(format="~%", title="share among the top k"))
    chart = (
        alt.Chart(frame)
        .mark_line(strokeWidth=1.8, point=_dots(60, seen=False))
        .encode(
            x=x("k:Q"),
            y=y,
            color=alt.Color("group:N", scale=looks["colour"], legend=LINE_KEYS),
            strokeDash=alt.StrokeDash("group:N", scale=looks["dash"], legend=LINE_KEYS),
            tooltip=[
                "group:N",
                alt.Tooltip("k:Q", format=","),
                alt.Tooltip("share:Q", format=".2%"),
            ],
        )
    )
    return _sheet(chart, "Groups among the neurons of largest reduction", table)


def figure_2c_group_shift(table: NeuronTable) -> Chart:
    """How the mean activations of each group moved, in % of the base's mean: percentiles, median
    and mean (figure 6c).

    Drawn are `percent_shifts` between the 10th and 90th percentile of all neurons, positive towards
    zero. Only neurons whose projection fell are in a group, so the side follows from the group, and
    only the size is a finding.
    """
    shift = without_tails(percent_shifts(table))
    cuts, rows, labels = ("p10", "p25", "median", "p75", "p90"), [], []
    for name, mask in table.groups().items():
        inside = shift[mask & ~np.isnan(shift)]
        labels.append(f"{name}: {inside.size:,} neurons")
        if inside.size:
            percentiles = np.percentile(inside, [10, 25, 50, 75, 90])
            facts = dict(zip(cuts, map(float, percentiles), strict=True))
            rows.append({"group": name, "row": labels[-1], **facts, "mean": float(inside.mean())})
    schema = {"group": pl.String, "row": pl.String, **dict.fromkeys((*cuts, "mean"), pl.Float64)}
    frame = pl.DataFrame(rows, schema=schema)
    looks = _group_scales(list(GROUPS))
    title = [PERCENT, "(where the projection falls; 10th to 90th percentile of all)"]
    y = alt.Y("row:N", sort=labels, scale=alt.Scale(domain=labels), title=None)
    y = y.axis(alt.Axis(ticks=False, domain=False))
    colour = alt.Color("group:N", scale=looks["colour"], legend=None)
    base = alt.Chart(frame).encode(y=y, tooltip=_told(frame.drop("row")))
    chart = alt.layer(
        base.mark_rule(strokeWidth=1.6).encode(
            x=alt.X("p10:Q", title=title), x2="p90:Q", color=colour
        ),
        zero_line("x"),
        base.mark_bar(size=12, opacity=0.5).encode(x="p25:Q", x2="p75:Q", color=colour),
        base.mark_tick(thickness=2, size=24, color=COLOURS["ink"]).encode(x="median:Q"),
        base.mark_point(filled=True, size=55, opacity=1, stroke=COLOURS["ground"]).encode(
            x="mean:Q", color=colour, shape=alt.Shape("group:N", scale=looks["shape"], legend=None)
        ),
    ).properties(height=alt.Step(38))
    return _sheet(
        chart,
        "Shift of mean activations by group",
        table,
        "line: 10th–90th percentile; bar: 25th–75th; stroke: median; mark: mean",
    )


def figure_3_top_aligned(table: NeuronTable, *, count: int = 100) -> Chart:
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
    moved = after - before
    looks = (
        Look("base", "ink", "circle", filled=False),
        Look("tuned", "blue", "diamond"),
        Look(f"falls ({(moved < 0).sum()})", "blue", "square"),
        Look(f"rises ({(moved > 0).sum()})", "vermillion", "square"),
    )
    facts = pl.DataFrame({
        "rank": np.arange(1, len(top) + 1),
        "layer": top // table.shape[1],
        "neuron": top % table.shape[1],
        "cosine": cosine[top],
        "base": before,
        "tuned": after,
        "change": moved,
    })  # fmt: skip
    told = _told(facts)
    means = pl.concat(
        facts.with_columns(what=pl.lit(name), value=pl.col(name)) for name in ("base", "tuned")
    )
    changes = facts.with_columns(
        value="change",
        what=pl.when(pl.col("change") < 0)
        .then(pl.lit(looks[2].label))
        .otherwise(pl.lit(looks[3].label)),
    )
    ends = f"{cosine[top[0]]:.2f} to {cosine[top[-1]]:.2f}"
    x = alt.X("rank:Q", title=f"rank by cosine ({ends})", scale=alt.Scale(nice=False))
    x = x.scale(domain=[0, len(top) + 1])
    stroke = alt.Stroke("what:N", scale=scales(looks)["colour"])
    fill = alt.Fill("what:N", scale=scales(looks)["fill"])
    points = alt.Chart(means).encode(x=x, tooltip=told)
    y = readable(means["value"].to_numpy(), "mean activation")("value:Q")
    upper = alt.layer(
        points.mark_line(strokeWidth=1, color=COLOURS["muted"]).encode(y=y, detail="rank:N"),
        zero_line("y"),
        points.mark_point(size=22, opacity=1, strokeWidth=1.2).encode(
            y=y, stroke=stroke, fill=fill, shape=alt.Shape("what:N", scale=scales(looks)["shape"])
        ),
    )
    bars = alt.Chart(changes).mark_bar(size=max(1.5, 0.7 * WIDTH / len(top)), strokeWidth=0)
    y = readable(moved, "tuned − base")("value:Q")
    lower = alt.layer(bars.encode(x=x, y=y, stroke=stroke, fill=fill, tooltip=told), zero_line("y"))
    title = f"The {len(top)} neurons most aligned with the direction"
    return _sheet(_stacked(upper, lower), title, table)


def figure_4_shift_distribution(table: NeuronTable) -> Chart:
    """Distribution of the shifts of mean activations in % of the base's mean, of all neurons and
    layer by layer (figure 4).

    Above, `percent_shifts` between their 10th and 90th percentile, with their mean ± one standard
    deviation; below, the same of each layer between percentiles of its own, as in
    `statistics.shifts`.
    """
    percents = percent_shifts(table)
    kept = without_tails(percents)
    inside = kept[~np.isnan(kept)]
    heights, edges = np.histogram(inside, bins=81) if inside.size else (np.array([]), np.array([]))
    bins = pl.DataFrame({"from": edges[:-1], "to": edges[1:], "neurons": heights})
    mean, deviation = (float(inside.mean()), float(inside.std())) if inside.size else (0.0, 0.0)
    lines = pl.DataFrame({
        "at": [mean, mean - deviation, mean + deviation],
        "line": ["mean", *["± 1 standard deviation"] * 2],
    })  # fmt: skip
    looks = scales((Look("mean", "ink", "stroke"), Look(lines["line"][1], "ink", "stroke", "--")))
    upper = alt.layer(
        alt.Chart(bins)
        .mark_bar(color=COLOURS["blue"], opacity=0.6, binSpacing=0)
        .encode(
            x=alt.X("from:Q", bin="binned", title=[PERCENT, "(10th to 90th percentile)"]),
            x2="to:Q",
            y=alt.Y("neurons:Q", axis=alt.Axis(format=",d", tickMinStep=1)),
            tooltip=_told(bins),
        ),
        alt.Chart(lines if inside.size else lines.clear())
        .mark_rule(strokeWidth=1.4, color=COLOURS["ink"])
        .encode(
            x="at:Q", strokeDash=alt.StrokeDash("line:N", scale=looks["dash"], legend=LINE_KEYS)
        ),
    ).properties(width=WIDTH, height=180)
    chart = alt.vconcat(upper, _layer_shifts(percents))
    return _sheet(chart, "Shift of mean activations", table)


def _layer_shifts(percents: Floats) -> Chart:
    """Of each layer the 10th to 90th percentile, and the mean ± one standard deviation of these."""
    rows = []
    for layer, values in enumerate(without_tails(row) for row in percents):
        inside = values[~np.isnan(values)]
        if inside.size:
            mean, deviation = float(inside.mean()), float(inside.std())
            facts = {"low": float(inside.min()), "high": float(inside.max()), "value": mean}
            rows.append(
                {"layer": layer, **facts, "under": mean - deviation, "over": mean + deviation}
            )
    columns = ("low", "high", "value", "under", "over")
    schema = {"layer": pl.Int64, **dict.fromkeys(columns, pl.Float64)}
    frame = pl.DataFrame(rows, schema=schema)
    y = readable(frame.select(columns).to_numpy().ravel(), "in %, by layer")
    base = alt.Chart(frame).encode(x=LAYER, tooltip=_told(frame))
    return alt.layer(
        base.mark_bar(color=COLOURS["blue"], opacity=0.3).encode(y=y("low:Q"), y2="high:Q"),
        zero_line("y"),
        base.mark_rule(strokeDash=[4, 2], color=COLOURS["ink"]).encode(y=y("under:Q"), y2="over:Q"),
        base.mark_point(filled=True, size=30, color=COLOURS["ink"], opacity=1).encode(
            y=y("value:Q")
        ),
    ).properties(width=WIDTH, height=180)


def figure_7_lower_ranks(
    table: NeuronTable, *, decoded: Mapping[tuple[int, int], str] | None = None
) -> Chart:
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
    frame = _ranks_frame(table, ranked, known)
    x = _rank_axis(ranked, "rank by reduction, largest first")
    shares = ticked([0, 0.2, 0.4, 0.6, 0.8, 1], "~%", "first k together")
    together = alt.Y("together:Q", scale=alt.Scale(domain=[0, 1.05]), axis=shares)
    least, most = ranked.share[[-1, 0]].tolist() if len(ranked.order) else (0.01, 1.0)
    ends = [max(least, NEGLIGIBLE / 100) / 2, 3 * most]
    alone = alt.Y(
        "alone:Q",
        scale=alt.Scale(type="log", domain=ends, clamp=True, nice=False),
        axis=alt.Axis(format="~%", title="neuron alone", tickCount=5),
    )
    told = _told(frame.drop("number", "step"), percent=("alone", "together"))
    base = alt.Chart(frame).encode(x=x("rank:Q"), tooltip=told)
    line = base.mark_line(color=COLOURS["blue"], strokeWidth=1.8, point=_dots(60, seen=False))
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
            text="number:Q"
        ),
    )
    panels = [*_stacked(upper, lower).vconcat, *([_listed(known)] if known else [])]
    return _sheet(alt.vconcat(*panels), "Reduction by rank", table, shaded)


def figure_8_layer_group(table: NeuronTable) -> Chart:
    """The reduction of each layer, stacked by group (figure 8)."""
    change = table.grid("projection_change")
    groups = table.groups()
    outside = (change < 0) & ~np.logical_or.reduce(list(groups.values()))
    if outside.any():
        groups = {**groups, NO_GROUP: outside}
    frame = pl.concat(
        pl.DataFrame({
            "layer": range(table.shape[0]),
            "group": name,
            "place": place,
            "reduction": -np.where(mask, change, 0.0).sum(1) + 0.0,
            "neurons": mask.sum(1),
        })
        for place, (name, mask) in enumerate(groups.items())
    )  # fmt: skip
    chart = (
        alt.Chart(frame)
        .mark_bar(fillOpacity=0.8, stroke=COLOURS["ground"], strokeWidth=0.5)
        .encode(
            x=LAYER,
            y=alt.Y("reduction:Q", title="reduction, −ΣΔ (residual units)"),
            color=alt.Color("group:N", scale=_group_scales(list(groups))["colour"]),
            order="place:O",
            tooltip=_told(frame.drop("place")),
        )
    )
    return _sheet(chart, "Reduction by layer and group", table)


def _sheet(chart: Chart, title: str, table: NeuronTable, *lines: str) -> Chart:
    """With a title that names the protocol, and what the figure counts: its direction, neurons, and
    the positions their means are over.
    """
    layers, neurons = table.shape
    parts = [str(table.record["direction"]["name"]), f"{layers:,} × {neurons:,} neurons"]
    if "count_base" in table.record:
        parts.append(
            f"means over {table.record['count_base']:,} and {table.record['count_tuned']:,} "
            "positions"
        )
    return titled(chart, f"{title} · {table.protocol}", ", ".join(parts), *lines)


def _stacked(upper: Chart, lower: Chart) -> alt.VConcatChart:
    size: Any = {"width": WIDTH, "height": 180}
    return alt.vconcat(upper.properties(**size), lower.properties(**size))


def _group_scales(names: list[str]) -> dict[str, alt.Scale]:
    return scales([GROUP_LOOKS[name] for name in names])


def _groups_present(ranked: Ranking) -> list[str]:
    return [*GROUPS, *([NO_GROUP] if (ranked.group == len(GROUPS)).any() else [])]


def _dots(size: int, *, seen: bool = True) -> alt.OverlayMarkDef:
    """Marks on a line, which hold its tooltips."""
    return alt.OverlayMarkDef(size=size, opacity=1 if seen else 0, filled=True)


def _told(frame: pl.DataFrame, *, percent: tuple[str, ...] = ()) -> list[alt.Tooltip]:
    """Every column under the pointer, with numbers that can be read."""
    tooltips = []
    for name, kind in frame.schema.items():
        if name in ("value", "what", "summed", "dash"):
            continue
        form = ",d" if kind.is_integer() else ".3~%" if name in percent else ".4~g"
        tooltips.append(
            alt.Tooltip(f"{name}:Q", format=form) if kind.is_numeric() else alt.Tooltip(f"{name}:N")
        )
    return tooltips


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
    return [rect.encode(x=x("first:Q"), x2="last:Q")], words


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
        rules.encode(x=x("first:Q"), x2="rank:Q", y=y),
        rules.encode(x=x("rank:Q"), y=y, y2="none:Q"),
        text.encode(x=x("first:Q"), y=y, text="words:N"),
    ]


def _decoded_ranks(
    table: NeuronTable, ranked: Ranking, decoded: Mapping[tuple[int, int], str]
) -> dict[int, tuple[int, int, str]]:
    """Rank to layer, neuron and tokens, in order of rank."""
    ranks = (
        {int(place): rank for rank, place in enumerate(ranked.order, start=1)} if decoded else {}
    )
    known = {}
    for (layer, neuron), tokens in decoded.items():
        inside = 0 <= layer < table.shape[0] and 0 <= neuron < table.shape[1]
        rank = ranks.get(layer * table.shape[1] + neuron) if inside else None
        if rank is None:
            raise DialdownError(
                f"Neuron {neuron} of layer {layer} is not among those whose projection fell, so it "
                "has no rank: decode one of these."
            )
        known[rank] = (layer, neuron, " ".join(printable(tokens).split()))
    return dict(sorted(known.items()))


def _listed(known: Mapping[int, tuple[int, int, str]]) -> alt.Chart:
    """The numbered neurons, a line each, below the figure."""
    lines = [
        f"{number}  rank {rank:,}, layer {layer}, neuron {neuron}: "
        + (tokens if len(tokens) <= TOKENS_SHOWN else f"{tokens[: TOKENS_SHOWN - 1]}…")
        for number, (rank, (layer, neuron, tokens)) in enumerate(known.items(), start=1)
    ]
    frame = pl.DataFrame({"line": lines, "place": range(len(lines))})
    text = alt.Chart(frame).mark_text(align="left", fontSize=10, x=0)
    chart: alt.Chart = text.encode(
        y=alt.Y("place:O", axis=None, scale=alt.Scale(padding=0)), text="line:N"
    ).properties(width=WIDTH, height=alt.Step(14))
    return chart
