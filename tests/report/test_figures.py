"""The figures: the numbers they draw, read back from their Vega-Lite specifications, against plain
loops; and the three files and the page's JSON that come of one chart.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import vl_convert
from hypothesis import given, settings
from hypothesis import strategies as st

from dialdown.errors import DialdownError
from dialdown.evaluation.bootstrap import Estimate
from dialdown.neurons.statistics import ranking
from dialdown.neurons.table import GROUPS, NeuronTable
from dialdown.report.chart_style import Chart
from dialdown.report.charts import Point, Price, controls, pareto_optimal, tradeoff
from dialdown.report.drawing import inline, save
from dialdown.report.names import FAMILIES
from dialdown.report.neuron_charts import (
    figure_1_layer_effects,
    figure_2a_group_contribution,
    figure_2c_group_shift,
    figure_3_top_aligned,
    figure_4_shift_distribution,
    figure_8_layer_group,
)
from dialdown.report.rank_charts import figure_2b_ranked_share, figure_7_lower_ranks

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


def compared_table(
    shape: tuple[int, int] = (4, 50), *, kind: str = "plain", protocol: str = "strict"
) -> NeuronTable:
    """A compared table of invented numbers.

    Kinds: `plain`; `positive` has no negative cosine, so AP and AN are empty; `still` has no change
    at all; `sparse` has base means of exactly zero whose projection falls all the same, which
    belong to no group.
    """
    rng = np.random.default_rng(7)
    cosine, base = rng.normal(0, 0.1, shape), rng.normal(0, 0.5, shape)
    if kind == "positive":
        cosine = np.abs(cosine)
    if kind == "sparse":
        base[:, ::3] = 0.0
    if kind == "silent":
        base[:] = 0.0
    tuned = base if kind == "still" else base + rng.standard_t(3, shape) * 0.02
    columns = {
        "layer": np.indices(shape)[0],
        "neuron": np.indices(shape)[1],
        "cosine": cosine,
        "mean_base": base,
        "mean_tuned": tuned,
        "projection_base": base * cosine,
        "projection_tuned": tuned * cosine,
        "projection_change": (tuned - base) * cosine,
        "value_cosine": np.ones(shape),
    }
    record = {
        "protocol": protocol,
        "direction": {"name": "probe"},
        "count_base": 2431,
        "count_tuned": 2390,
    }
    return NeuronTable({name: values.reshape(shape) for name, values in columns.items()}, record)


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


def views(chart: Chart) -> list[dict[str, Any]]:
    """Every mark of a chart, which Altair has validated: its specification, with its rows as
    `data`.
    """
    spec = chart.to_dict()

    def walk(part: dict[str, Any], data: Any) -> Iterator[dict[str, Any]]:
        data = part.get("data", data)
        for key in ("layer", "hconcat", "vconcat"):
            for inner in part.get(key, []):
                yield from walk(inner, data)
        if "mark" in part:
            rows = spec["datasets"][data["name"]] if "name" in data else data["values"]
            yield {**part, "data": rows}

    return list(walk(spec, None))


def rows_of(chart: Chart, mark: str, *fields: str) -> list[dict[str, Any]]:
    """The rows of the first mark of a kind that shows these fields."""
    for view in views(chart):
        channels = [value for value in view["encoding"].values() if isinstance(value, dict)]
        shown = {channel.get("field") for channel in channels}
        if view["mark"]["type"] == mark and set(fields) <= shown:
            rows: list[dict[str, Any]] = view["data"]
            return rows
    raise AssertionError(f"no {mark} shows {fields}")


def column(rows: list[dict[str, Any]], name: str, **where: Any) -> list[Any]:
    return [row[name] for row in rows if all(row[key] == value for key, value in where.items())]


def drawn(chart: Chart) -> str:
    """The chart as SVG, without its labels for screen readers, which describe empty lines too."""
    svg = vl_convert.vegalite_to_svg(chart.to_dict())
    return re.sub(r'aria-label="[^"]*"', "", svg)


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


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3), min_size=6, max_size=6),
    st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=6, max_size=6),
)
def test_ranking_orders_what_fell_and_shares_add_to_one(
    changes: list[float], cosines: list[float]
) -> None:
    columns = {"projection_change": changes, "cosine": cosines, "mean_base": [1.0] * 6}
    grids = {name: np.reshape(values, (2, 3)) for name, values in columns.items()}
    ranked = ranking(NeuronTable(grids, {"protocol": "strict"}))
    assert sorted(ranked.order.tolist()) == [
        place for place, change in enumerate(changes) if change < 0
    ]
    assert all(a >= b > 0 for a, b in zip(ranked.reduction, ranked.reduction[1:], strict=False))
    assert [cosines[place] for place in ranked.order] == [
        (1.0, 1.0, -1.0, -1.0, 0.0)[group] for group in ranked.group
    ]
    if len(ranked.order):
        assert ranked.cumulated[-1] == 1
        assert ranked.share.sum() == pytest.approx(1)
        assert ranked.places(4)[[0, -1]].tolist() == [0, len(ranked.order) - 1]


def estimate(mean: float, spread: float = 0.02, n: int = 128) -> Estimate:
    return Estimate(mean, mean - spread, mean + spread, n)


def point(family: str, strength: float, toxicity: float, price: float, *, name: str = "") -> Point:
    prices = (estimate(price, price / 5, n=12), estimate(0.8 * price, price / 6, n=12))
    return Point(family, name or family, strength, estimate(toxicity), *prices)


POINTS = [
    point("none", 0, 0.4, 0.0),
    point("edit_probe_set", 0.5, 0.04, 6.1),
    point("edit_probe_set", 0.2, 0.12, 2.1),
    point("dpo", 60, 0.06, 0.03),
    point("dpo", 20, 0.2, 0.01),
    point("edit_random_neurons_scale", 0.5, 0.3, 3.0),
]


@pytest.mark.parametrize(("price", "factor"), [("log_ppl", 1), ("kl", 0.8)])
def test_the_tradeoff_joins_a_family_in_order_of_strength_with_intervals_both_ways(
    price: Price, factor: float
) -> None:
    chart = tradeoff(POINTS, "strict", price=price)
    [view] = [view for view in views(chart) if view["mark"]["type"] == "line"]
    assert view["encoding"]["order"] == {"field": "dial", "type": "quantitative"}
    shown = view["data"]
    edits = FAMILIES["edit_probe_set"].label
    assert column(shown, "dial", family=edits) == [0.5, 0.2]
    assert column(shown, "price", family=edits) == pytest.approx([6.1 * factor, 2.1 * factor])
    assert column(shown, "score", family=edits) == [0.04, 0.12]
    assert column(shown, "greatest", family=edits) == [True, False]
    spread = 6.1 / 5 if factor == 1 else 6.1 / 6
    assert [shown[1]["price_low"], shown[1]["price_high"]] == pytest.approx(
        [6.1 * factor - spread, 6.1 * factor + spread]
    )
    assert [shown[1]["score_low"], shown[1]["score_high"]] == pytest.approx([0.02, 0.06])
    assert sorted(column(shown, "score", best=True)) == [0.04, 0.06, 0.2, 0.4]
    assert column(shown, "toxicity", family=edits)[0] == "0.04 [0.02, 0.06], n = 128"
    assert "128 prompts, 12 blocks" in drawn(chart)


def test_the_tradeoff_shows_every_family_and_every_name_as_it_is() -> None:
    everything = [
        point(family, s, 0.4 - 0.02 * i - 0.1 * s, 0.003 * 2**i * (1 + s))
        for i, family in enumerate(FAMILIES)
        for s in (0, 1, 2)
    ]
    chart = tradeoff([*everything, point("patch", 3, 0.1, 0.5, name="<i>TP</i>")], "paper")
    svg = drawn(chart)
    assert all(look.label in svg for look in FAMILIES.values())
    assert "· paper" in svg
    assert not re.search("NaN|undefined|Infinity", svg)
    assert "<i>" not in inline(chart, "x", "y")
    assert "<i>TP</i>" in column(rows_of(chart, "point", "price"), "name")


def test_a_point_whose_price_was_not_measured_is_left_out() -> None:
    alone = Point("dpo", "unpriced", None, estimate(0.1), estimate(0.2), None)
    shown = rows_of(tradeoff([alone, *POINTS], "strict", price="kl"), "point", "price")
    assert "unpriced" not in column(shown, "name")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_pareto_points_are_undominated_and_cover_the_rest(places: list[tuple[int, int]]) -> None:
    points = [point("dpo", 0, float(y), float(x)) for x, y in places]
    kept = pareto_optimal(points, "log_ppl")
    best = {place for place, keep in zip(places, kept, strict=True) if keep}
    assert all(a == b or (a[0] < b[0]) == (a[1] > b[1]) for a in best for b in best)
    for place, keep in zip(places, kept, strict=True):
        assert keep == (place in best)
        assert any(x <= place[0] and y <= place[1] for x, y in best)


def test_controls_stand_beside_their_intervention_also_unknown_ones() -> None:
    rows = {"edit": {"": estimate(-0.3), "random_neurons": estimate(-0.1), "new": estimate(0.0)}}
    chart = controls(rows, "paper", "change of toxicity (mean score)")
    shown = rows_of(chart, "point", "value")
    assert column(shown, "control") == ["the intervention", "random neurons", "new"]
    assert column(shown, "value") == [-0.3, -0.1, 0.0]
    assert column(rows_of(chart, "rule", "value_low"), "value_high") == pytest.approx(
        [-0.28, -0.08, 0.02]
    )
    assert "Change of toxicity · paper" in drawn(chart)


def test_saved_figures_are_small_and_the_same_each_time(tmp_path: Path) -> None:
    table = compared_table((6, 100))
    once, again = (
        save(figure_8_layer_group(table), tmp_path / name / "figure 8.1") for name in ("a", "b")
    )
    assert [path.name for path in once] == ["figure 8.1.svg", "figure 8.1.png", "figure 8.1.pdf"]
    # The writer of PDF files orders their fonts by chance.
    for first, second in list(zip(once, again, strict=True))[:2]:
        assert first.read_bytes() == second.read_bytes()
    starts = (b"<svg", b"\x89PNG", b"%PDF")
    for path, start in zip(once, starts, strict=True):
        assert path.read_bytes().startswith(start)
        assert path.stat().st_size < 300_000


def test_a_figure_does_not_depend_on_what_was_drawn_before_it(tmp_path: Path) -> None:
    first, second = (
        save(tradeoff(POINTS, "strict", price=price), tmp_path / price)[0].read_text()
        for price in ("log_ppl", "kl")
    )
    ids = re.findall(r'id="(.*?)"', first)
    assert ids
    assert ids == re.findall(r'id="(.*?)"', second)
    assert all(f"url(#{name})" in first for name in ids)


def inlined(chart: Chart, **options: Any) -> tuple[str, ElementTree.Element]:
    text = inline(chart, "name", "What <it> shows & how", **options)
    return text, ElementTree.fromstring(text)


def test_a_chart_for_the_page_is_offline_and_takes_its_colours_from_there() -> None:
    chart = figure_8_layer_group(compared_table())
    text, root = inlined(chart)
    assert text == inlined(chart)[0]
    assert (root.get("role"), root.get("aria-label")) == ("img", "What <it> shows & how")
    assert "var(--fig-vermillion)" in text
    assert not re.search(r"https?:|//|#[0-9a-f]{6}|style=", text)


def test_a_mark_on_the_page_tells_what_its_tooltip_would() -> None:
    table = compared_table()
    bars = rows_of(figure_8_layer_group(table), "bar", "reduction")
    _, root = inlined(figure_8_layer_group(table))
    told = [mark.get("data-tip", "") for mark in root.iter() if mark.get("data-tip")]
    assert len(told) == len(bars)
    assert {tip.split("\n")[1] for tip in told} == {f"group: {bar['group']}" for bar in bars}
    # Nothing else is told, such as axes.
    assert not [mark for mark in root.iter() if mark is not root and mark.get("aria-label")]


def test_a_mark_leads_to_what_it_names() -> None:
    _, root = inlined(tradeoff(POINTS, "strict"), links={"dpo": "samples-7"})
    leading = [mark for mark in root.iter("a") if mark.get("href") == "#samples-7"]
    assert len(leading) == sum(point.name == "dpo" for point in POINTS)
    assert all("name: dpo" in (mark.get("aria-label") or "") for mark in leading)
    assert root.get("role") == "group"
