"""The paper's figures 1 to 6 and 8 for any model (METHOD §9); `rank_charts` has 2b and 7.

    save(figure_8_layer_group(table), Path("figures/figure-8"))   # a compared neuron table

Every figure names its protocol and what it counts. "Reduction" is −Δ of the neurons whose
projection fell. What is drawn are sums, shares and percentiles, never a point for every neuron.
"""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import polars as pl

from ..neurons.statistics import (
    Floats,
    Ranking,
    opposing_effects,
    percent_shifts,
    ranking,
    without_tails,
)  # fmt: skip
from ..neurons.table import GROUPS, NeuronTable
from .chart_style import (
    COLOURS,
    DASHES,
    GROUP_LOOKS,
    LINE_KEYS,
    NO_GROUP,
    WIDTH,
    Chart,
    readable,
    scales,
    titled,
    zero_line,
)
from .names import Look

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
    layers = opposing_effects(table).drop_nulls("layer").rename({"up": "rising", "down": "falling"})
    layers = layers.with_columns(pl.col("net").cum_sum().alias("net up to here"))
    frame = pl.concat(
        layers.select(
            "layer",
            pl.lit(look.label).alias("what"),
            pl.lit(DASHES[look.dash], pl.List(pl.Int64)).alias("dash"),
            pl.col(effect).alias("value"),
            pl.col(effect).cum_sum().alias("summed"),
            *("rising", "falling", "net", "net up to here"),
        )
        for look, effect in zip(EFFECTS, ("rising", "falling", "net"), strict=True)
    )
    colour = alt.Color("what:N", scale=scales(EFFECTS)["colour"])
    base = alt.Chart(frame).encode(x=LAYER, color=colour, tooltip=tooltips(frame))
    net = f"datum.what === '{EFFECTS[2].label}'"
    each = alt.layer(
        base.transform_filter(f"!({net})")
        .mark_bar(fillOpacity=0.75)
        .encode(y=alt.Y("value:Q", title=["ΣΔ in the layer", "(residual units)"])),
        base.transform_filter(net).mark_line(point=dots(30)).encode(y=alt.Y("value:Q")),
        zero_line("y"),
    )
    total = alt.layer(
        base.mark_line(point=dots(30)).encode(
            y=alt.Y("summed:Q", title=["ΣΔ up to the layer", "(residual units)"]),
            strokeDash=alt.StrokeDash("dash:N", scale=None),
        ),
        zero_line("y"),
    )
    return sheet(stacked(each, total), "Projection changes, falling and rising", table)


def figure_2a_group_contribution(table: NeuronTable) -> Chart:
    """Share of each group in the whole reduction, beside its share of the falling neurons (figures
    2a and 6a, table 5).
    """
    ranked = ranking(table)
    names = groups_present(ranked)
    sums = np.bincount(ranked.group, weights=ranked.reduction, minlength=len(GROUPS) + 1)
    counts = np.bincount(ranked.group, minlength=len(GROUPS) + 1)
    frame = pl.DataFrame({
        "group": names,
        "neurons": counts[: len(names)],
        "reduction": (sums / max(sums.sum(), np.finfo(float).tiny))[: len(names)],
        "share of the falling neurons": (counts / max(counts.sum(), 1))[: len(names)],
        "place": [f"{name} ({count:,})" for name, count in zip(names, counts, strict=False)],
    })  # fmt: skip
    axis = alt.Axis(labelAngle=0, title="group, and its neurons whose projection falls")
    x = alt.X("place:O", sort=None, axis=axis)
    share = alt.Axis(format="~%", title="share of the whole reduction")
    base = alt.Chart(frame).encode(x=x, tooltip=tooltips(frame.drop("place")))
    chart = alt.layer(
        base.mark_bar(fillOpacity=0.75).encode(
            y=alt.Y("reduction:Q", axis=share),
            color=alt.Color("group:N", scale=group_scales(names)["colour"], legend=None),
        ),
        base.mark_tick(thickness=2.5, color=COLOURS["ink"], opacity=1).encode(
            y=alt.Y("share of the falling neurons:Q")
        ),
        base.mark_text(dy=-8, baseline="bottom").encode(
            y=alt.Y("top:Q"), text=alt.Text("reduction:Q", format=".1%")
        ),
    ).transform_calculate(top="max(datum.reduction, datum['share of the falling neurons'])")
    return sheet(
        chart,
        "Contribution of each group to the reduction",
        table,
        "bar: share of the reduction; line: share of the falling neurons",
    )


def figure_2c_group_shift(table: NeuronTable) -> Chart:
    """How the mean activations of each group moved, in % of the base's mean: percentiles, median
    and mean (figure 6c).

    Drawn are `percent_shifts` between the 10th and 90th percentile of all neurons, positive towards
    zero. Only neurons whose projection fell are in a group, so the side follows from the group, and
    only the size is a finding.
    """
    shifts = (
        table.to_polars()
        .select("group", shift=without_tails(percent_shifts(table)).ravel())
        .drop_nulls()
        .drop_nans()
    )
    percentiles = {"p10": 0.1, "p25": 0.25, "median": 0.5, "p75": 0.75, "p90": 0.9}
    counts = {name: shifts.filter(group=name).height for name in GROUPS}
    labels = {name: f"{name}: {count:,} neurons" for name, count in counts.items()}
    shift = pl.col("shift")
    frame = (
        shifts.group_by("group", maintain_order=True)
        .agg(
            mean=shift.mean(),
            **{name: shift.quantile(at, "linear") for name, at in percentiles.items()},
        )
        .select("group", pl.col("group").replace(labels).alias("row"), *percentiles, "mean")
        .sort(pl.col("group").replace_strict({name: place for place, name in enumerate(GROUPS)}))
    )
    looks = group_scales(list(GROUPS))
    title = [PERCENT, "(where the projection falls; 10th to 90th percentile of all)"]
    y = alt.Y("row:N", sort=None, scale=alt.Scale(domain=[*labels.values()]), title=None)
    y = y.axis(alt.Axis(ticks=False, domain=False))
    colour = alt.Color("group:N", scale=looks["colour"], legend=None)
    base = alt.Chart(frame).encode(y=y, tooltip=tooltips(frame.drop("row")))
    chart = alt.layer(
        base.mark_rule(strokeWidth=1.6).encode(
            x=alt.X("p10:Q", title=title), x2=alt.X2("p90"), color=colour
        ),
        zero_line("x"),
        base.mark_bar(size=12, opacity=0.5).encode(
            x=alt.X("p25:Q"), x2=alt.X2("p75"), color=colour
        ),
        base.mark_tick(thickness=2, size=24, color=COLOURS["ink"]).encode(x=alt.X("median:Q")),
        base.mark_point(filled=True, size=55, opacity=1, stroke=COLOURS["ground"]).encode(
            x=alt.X("mean:Q"),
            color=colour,
            shape=alt.Shape("group:N", scale=looks["shape"], legend=None),
        ),
    ).properties(height=alt.Step(38))
    return sheet(
        chart,
        "Shift of mean activations by group",
        table,
        "line: 10th–90th percentile; bar: 25th–75th; stroke: median; mark: mean",
    )


def figure_3_top_aligned(table: NeuronTable, *, count: int = 100) -> Chart:
    """The mean activations of the `count` neurons of highest cosine with the direction, before and
    after tuning (figure 3).
    """
    facts = (
        table.to_polars()
        .select(
            "layer", "neuron", "cosine", base="mean_base", tuned=table.grid("mean_tuned").ravel()
        )
        .sort("cosine", descending=True, maintain_order=True)
        .head(count)
        .with_row_index("rank", 1)
        .with_columns(change=pl.col("tuned") - pl.col("base"))
    )
    moved = facts["change"].to_numpy()
    looks = (
        Look("base", "ink", "circle", filled=False),
        Look("tuned", "blue", "diamond"),
        Look(f"falls ({(moved < 0).sum()})", "blue", "square"),
        Look(f"rises ({(moved > 0).sum()})", "vermillion", "square"),
    )
    tooltip = tooltips(facts)
    means = pl.concat(
        facts.with_columns(what=pl.lit(name), value=pl.col(name)) for name in ("base", "tuned")
    )
    falls, rises = (pl.lit(look.label) for look in looks[2:])
    way = pl.when(pl.col("change") < 0).then(falls).otherwise(rises)
    changes = facts.with_columns(value="change", what=way)
    shown, first, last = facts.height, facts["cosine"][0], facts["cosine"][-1]
    scale = alt.Scale(nice=False, domain=[0, shown + 1])
    x = alt.X("rank:Q", title=f"rank by cosine ({first:.2f} to {last:.2f})", scale=scale)
    stroke = alt.Stroke("what:N", scale=scales(looks)["colour"])
    fill = alt.Fill("what:N", scale=scales(looks)["fill"])
    points = alt.Chart(means).encode(x=x, tooltip=tooltip)
    y = readable(means["value"].to_numpy(), "mean activation")("value:Q")
    upper = alt.layer(
        points.mark_line(strokeWidth=1, color=COLOURS["muted"]).encode(
            y=y, detail=alt.Detail("rank:N")
        ),
        zero_line("y"),
        points.mark_point(size=22, opacity=1, strokeWidth=1.2).encode(
            y=y, stroke=stroke, fill=fill, shape=alt.Shape("what:N", scale=scales(looks)["shape"])
        ),
    )
    bars = alt.Chart(changes).mark_bar(size=max(1.5, 0.7 * WIDTH / shown), strokeWidth=0)
    y = readable(moved, "tuned − base")("value:Q")
    lower = alt.layer(
        bars.encode(x=x, y=y, stroke=stroke, fill=fill, tooltip=tooltip), zero_line("y")
    )
    title = f"The {shown} neurons most aligned with the direction"
    return sheet(stacked(upper, lower), title, table)


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
            x2=alt.X2("to"),
            y=alt.Y("neurons:Q", axis=alt.Axis(format=",d", tickMinStep=1)),
            tooltip=tooltips(bins),
        ),
        alt.Chart(lines if inside.size else lines.clear())
        .mark_rule(strokeWidth=1.4, color=COLOURS["ink"])
        .encode(
            x=alt.X("at:Q"),
            strokeDash=alt.StrokeDash("line:N", scale=looks["dash"], legend=LINE_KEYS),
        ),
    ).properties(width=WIDTH, height=180)
    chart = alt.vconcat(upper, _layer_shifts(percents))
    return sheet(chart, "Shift of mean activations", table)


def _layer_shifts(percents: Floats) -> Chart:
    """Of each layer the 10th to 90th percentile, and the mean ± one standard deviation of these."""
    inside = np.stack([without_tails(row) for row in percents])
    layer, neuron = np.nonzero(~np.isnan(inside))
    value, columns = pl.col("value"), ("low", "high", "value", "under", "over")
    frame = (
        pl.DataFrame({"layer": layer, "value": inside[layer, neuron]})
        .group_by("layer", maintain_order=True)
        .agg(
            value.min().alias("low"),
            value.max().alias("high"),
            value.mean(),
            value.std(0).alias("sd"),
        )
        .with_columns(under=value - pl.col("sd"), over=value + pl.col("sd"))
        .select("layer", *columns)
    )
    y = readable(frame.select(columns).to_numpy().ravel(), "in %, by layer")
    base = alt.Chart(frame).encode(x=LAYER, tooltip=tooltips(frame))
    return alt.layer(
        base.mark_bar(color=COLOURS["blue"], opacity=0.3).encode(y=y("low:Q"), y2=alt.Y2("high")),
        zero_line("y"),
        base.mark_rule(strokeDash=[4, 2], color=COLOURS["ink"]).encode(
            y=y("under:Q"), y2=alt.Y2("over")
        ),
        base.mark_point(filled=True, size=30, color=COLOURS["ink"], opacity=1).encode(
            y=y("value:Q")
        ),
    ).properties(width=WIDTH, height=180)


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
            color=alt.Color("group:N", scale=group_scales(list(groups))["colour"]),
            order=alt.Order("place:O"),
            tooltip=tooltips(frame.drop("place")),
        )
    )
    return sheet(chart, "Reduction by layer and group", table)


def sheet(chart: Chart, title: str, table: NeuronTable, *lines: str) -> Chart:
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


def stacked(upper: Chart, lower: Chart) -> alt.VConcatChart:
    size: Any = {"width": WIDTH, "height": 180}
    return alt.vconcat(upper.properties(**size), lower.properties(**size))


def group_scales(names: list[str]) -> dict[str, alt.Scale]:
    return scales([GROUP_LOOKS[name] for name in names])


def groups_present(ranked: Ranking) -> list[str]:
    return [*GROUPS, *([NO_GROUP] if (ranked.group == len(GROUPS)).any() else [])]


def dots(size: int) -> alt.OverlayMarkDef:
    """Marks on a line, which hold its tooltips."""
    return alt.OverlayMarkDef(size=size, opacity=1, filled=True)


def tooltips(frame: pl.DataFrame, *, percent: tuple[str, ...] = ()) -> list[alt.Tooltip]:
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
