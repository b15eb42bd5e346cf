"""The figures of neurons and ranks: the numbers they draw against plain loops."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dialdown.errors import DialdownError
from dialdown.neurons.table import GROUPS, NeuronTable
from dialdown.report.chart_style import Chart
from dialdown.report.drawing import inline
from dialdown.report.neuron_charts import (
    figure_1_layer_effects,
    figure_2a_group_contribution,
    figure_2c_group_shift,
    figure_3_top_aligned,
    figure_4_shift_distribution,
    figure_8_layer_group,
)
from dialdown.report.rank_charts import figure_2b_ranked_share, figure_7_lower_ranks
from helpers.charts import column, compared_table, drawn, rows_of

FIGURES: list[Callable[[NeuronTable], Chart]] = [
    figure_1_layer_effects,
    figure_2a_group_contribution,
    figure_2b_ranked_share,
    figure_2c_group_shift,
    figure_3_top_aligned,
    figure_4_shift_distribution,
    figure_7_lower_ranks,
    figure_8_layer_group,
]


def group_of(cosine: float, mean: float) -> str | None:
    """METHOD §3, one neuron at a time."""
    if cosine == 0 or mean == 0:
        return None
    return ("T" if cosine > 0 else "A") + ("P" if mean > 0 else "N")


def rows(table: NeuronTable) -> list[dict[str, Any]]:
    """The table as a list, each neuron with its group where its projection fell."""
    listed = table.to_polars().to_dicts()
    for row in listed:
        row["group"] = (
            group_of(row["cosine"], row["mean_base"]) if row["projection_change"] < 0 else None
        )
        base = row["mean_base"]
        row["percent"] = 100 * (base - row["mean_tuned"]) / base if base else None
    return listed


def between_tenths(percents: list[Any]) -> list[float]:
    """Section 5.1: those between the 10th and 90th percentile of all of them."""
    known = [percent for percent in percents if percent is not None]
    low, *_, high = statistics.quantiles(known, n=10, method="inclusive")
    return [percent for percent in known if low <= percent <= high]


def falling(table: NeuronTable) -> list[dict[str, Any]]:
    """The neurons whose projection fell, largest fall first."""
    return sorted(
        (row for row in rows(table) if row["projection_change"] < 0),
        key=lambda row: row["projection_change"],
    )


def test_layer_effects_are_the_sums_of_each_sign() -> None:
    table = compared_table()
    bars = rows_of(figure_1_layer_effects(table), "bar", "value")
    lines = rows_of(figure_1_layer_effects(table), "line", "summed")
    by_layer = [
        [row["projection_change"] for row in rows(table) if row["layer"] == layer]
        for layer in range(4)
    ]
    up = [math.fsum(x for x in layer if x > 0) for layer in by_layer]
    down = [math.fsum(x for x in layer if x < 0) for layer in by_layer]
    net = [math.fsum(layer) for layer in by_layer]
    names = ("rising neurons (Δ > 0)", "falling neurons (Δ < 0)", "net")
    for name, values in zip(names, (up, down, net), strict=True):
        assert column(bars, "value", what=name) == pytest.approx(values)
        summed = [math.fsum(values[: end + 1]) for end in range(4)]
        assert column(lines, "summed", what=name) == pytest.approx(summed)
    # Under the pointer, every layer has all of it.
    assert column(bars, "net up to here", what="net") == pytest.approx(np.cumsum(net))
    assert column(bars, "rising", what="net") == pytest.approx(up)


@pytest.mark.parametrize("kind", ["plain", "sparse"])
def test_contributions_of_groups_are_shares_of_the_whole_reduction(kind: str) -> None:
    table = compared_table(kind=kind)
    fallen = falling(table)
    names: list[str | None] = [*GROUPS, *([None] if kind == "sparse" else [])]
    whole = math.fsum(row["projection_change"] for row in fallen)
    wanted = [
        math.fsum(row["projection_change"] for row in fallen if row["group"] == name) / whole
        for name in names
    ]
    shown = rows_of(figure_2a_group_contribution(table), "bar", "reduction")
    assert column(shown, "group") == [name or "none" for name in names]
    assert column(shown, "reduction") == pytest.approx(wanted)
    assert sum(wanted) == pytest.approx(1)
    counts = [sum(row["group"] == name for row in fallen) for name in names]
    assert column(shown, "neurons") == counts
    assert column(shown, "share of the falling neurons") == pytest.approx(
        [count / len(fallen) for count in counts]
    )


def test_ranked_shares_count_the_groups_among_the_top_k() -> None:
    table = compared_table()
    fallen = falling(table)
    lines = rows_of(figure_2b_ranked_share(table), "line", "k", "share")
    for name in GROUPS:
        ranks = column(lines, "k", group=name)
        assert (ranks[0], ranks[-1]) == (10, len(fallen))
        for k, share in zip(ranks, column(lines, "share", group=name), strict=True):
            assert share == pytest.approx(sum(row["group"] == name for row in fallen[:k]) / k)


def test_group_shifts_show_percentiles_median_and_mean() -> None:
    table = compared_table()
    shown = rows_of(figure_2c_group_shift(table), "rule", "p10", "p90")
    kept = {*between_tenths([row["percent"] for row in rows(table)])}
    for row, name in zip(shown, GROUPS, strict=True):
        shifts = [
            row["percent"] for row in rows(table) if row["group"] == name and row["percent"] in kept
        ]
        tenths, quarters = (statistics.quantiles(shifts, n=n, method="inclusive") for n in (10, 4))
        assert row["group"] == name
        assert [row["p10"], row["p90"]] == pytest.approx([tenths[0], tenths[-1]])
        assert [row["p25"], row["p75"]] == pytest.approx([quarters[0], quarters[-1]])
        assert row["median"] == pytest.approx(statistics.median(shifts))
        assert row["mean"] == pytest.approx(statistics.fmean(shifts))


def test_the_most_aligned_neurons_are_drawn_by_their_mean_activations() -> None:
    table = compared_table()
    top = sorted(rows(table), key=lambda row: -row["cosine"])[:30]
    chart = figure_3_top_aligned(table, count=30)
    before, after = ([row[f"mean_{when}"] for row in top] for when in ("base", "tuned"))
    means = rows_of(chart, "point", "value")
    assert column(means, "value", what="base") == pytest.approx(before)
    assert column(means, "value", what="tuned") == pytest.approx(after)
    changes = rows_of(chart, "bar", "value")
    assert column(changes, "value") == pytest.approx(np.subtract(after, before))
    assert column(changes, "neuron") == [row["neuron"] for row in top]
    for row in changes:
        assert row["what"].startswith("falls" if row["value"] < 0 else "rises")


@pytest.mark.parametrize("kind", ["plain", "sparse"])
def test_shift_distribution_counts_the_percentages_between_the_tenths_once(kind: str) -> None:
    table = compared_table(kind=kind)
    kept = between_tenths([row["percent"] for row in rows(table)])
    chart = figure_4_shift_distribution(table)
    bins = rows_of(chart, "bar", "neurons")
    assert sum(column(bins, "neurons")) == len(kept)
    assert (bins[0]["from"], bins[-1]["to"]) == pytest.approx((min(kept), max(kept)))
    mean, deviation = statistics.fmean(kept), statistics.pstdev(kept)
    assert column(rows_of(chart, "rule", "at"), "at") == pytest.approx(
        [mean, mean - deviation, mean + deviation]
    )
    for row in rows_of(chart, "bar", "low"):
        values = [neuron["percent"] for neuron in rows(table) if neuron["layer"] == row["layer"]]
        inside = between_tenths(values)
        assert [row["low"], row["high"]] == pytest.approx([min(inside), max(inside)])
        mean, deviation = statistics.fmean(inside), statistics.pstdev(inside)
        assert [row["under"], row["value"], row["over"]] == pytest.approx(
            [mean - deviation, mean, mean + deviation]
        )


def test_a_model_without_any_activation_has_no_percentages_to_draw() -> None:
    table = compared_table((2, 7), kind="silent")
    for draw in (figure_2c_group_shift, figure_4_shift_distribution):
        assert "NaN" not in drawn(draw(table))


def test_reduction_by_rank_and_the_ranks_of_half_and_most_of_it() -> None:
    table = compared_table()
    fallen = [-row["projection_change"] for row in falling(table)]
    chart = figure_7_lower_ranks(table)
    for row in rows_of(chart, "line", "rank", "together"):
        k = row["rank"]
        assert row["together"] == pytest.approx(math.fsum(fallen[:k]) / math.fsum(fallen))
        assert row["alone"] == pytest.approx(fallen[k - 1] / math.fsum(fallen))
    for percent in (50, 90):
        rank = next(
            k
            for k in range(len(fallen))
            if math.fsum(fallen[:k]) >= percent / 100 * math.fsum(fallen)
        )
        assert f"{rank} neurons bring {percent}%" in drawn(chart)


def test_ranks_are_few_and_name_their_neurons_literally() -> None:
    table = compared_table((20, 1000))
    fallen = falling(table)
    rank = 6789
    neuron = (fallen[rank - 1]["layer"], fallen[rank - 1]["neuron"])
    chart = figure_7_lower_ranks(table, decoded={neuron: '<i>"kind"</i> &\n</script>'})
    shown = rows_of(chart, "line", "rank", "alone")
    assert len(shown) <= 301
    [row] = [row for row in shown if row["rank"] == rank]
    assert (row["layer"], row["neuron"], row["number"]) == (*neuron, 1)
    assert row["group"] == fallen[rank - 1]["group"]
    assert row["tokens"] == '<i>"kind"</i> & </script>'
    text = inline(chart, "name", "a figure")
    assert "<i>" not in text
    assert '&lt;i&gt;"kind"&lt;/i&gt; &amp; &lt;/script&gt;' in text


def test_decoded_neurons_are_numbered_by_rank_and_listed() -> None:
    table = compared_table()
    first, tenth = falling(table)[0], falling(table)[9]
    decoded = {
        (row["layer"], row["neuron"]): text
        for row, text in ((tenth, "good\n$x$"), (first, "毒 <b> & " + "w" * 90))
    }
    lines = column(rows_of(figure_7_lower_ranks(table, decoded=decoded), "text", "line"), "line")
    assert lines[0].startswith(
        f"1  rank 1, layer {first['layer']}, neuron {first['neuron']}: 毒 <b> & www"
    )
    assert lines[0].endswith("w…")
    assert lines[1] == f"2  rank 10, layer {tenth['layer']}, neuron {tenth['neuron']}: good $x$"


@pytest.mark.parametrize("kind", ["plain", "sparse"])
def test_layers_are_stacked_by_group_to_all_that_fell(kind: str) -> None:
    table = compared_table(kind=kind)
    bars = rows_of(figure_8_layer_group(table), "bar", "reduction")
    names: list[str | None] = [*GROUPS, *([None] if kind == "sparse" else [])]
    total = np.zeros(4)
    for name in names:
        wanted = [
            -math.fsum(
                row["projection_change"]
                for row in falling(table)
                if row["layer"] == layer and row["group"] == name
            )
            for layer in range(4)
        ]
        assert column(bars, "reduction", group=name or "none") == pytest.approx(wanted)
        total += wanted
    effects = rows_of(figure_1_layer_effects(table), "bar", "value")
    assert column(effects, "value", what="falling neurons (Δ < 0)") == pytest.approx(-total)


@pytest.mark.parametrize("draw", FIGURES)
@pytest.mark.parametrize(
    ("shape", "kind"),
    [((30, 400), "plain"), ((1, 60), "still"), ((3, 40), "positive"), ((2, 7), "sparse")],
)
def test_figures_name_their_protocol_and_what_they_count(
    draw: Any, shape: tuple[int, int], kind: str
) -> None:
    svg = drawn(draw(compared_table(shape, kind=kind, protocol="paper")))
    assert "· paper" in svg
    assert f"{shape[0]} × {shape[1]} neurons" in svg
    assert "2,431 and 2,390 positions" in svg
    assert not re.search("NaN|undefined|Infinity", svg)


@pytest.mark.parametrize("draw", FIGURES)
def test_a_table_without_a_tuned_model_is_refused(draw: Any) -> None:
    table = compared_table()
    base = ("cosine", "mean_base", "projection_base")
    alone = NeuronTable({name: table.columns[name] for name in base}, table.record)
    with pytest.raises(DialdownError, match=r"dd\.compare"):
        draw(alone)
