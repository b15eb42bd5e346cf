"""The paper's figures and the front: the numbers they draw, read back from the artists, against
plain loops.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text

from dialdown.errors import DialdownError
from dialdown.evaluation.bootstrap import Estimate
from dialdown.neurons.ranks import ranking
from dialdown.neurons.table import GROUPS, NeuronTable
from dialdown.report.drawing import save
from dialdown.report.front import FAMILIES, FrontPoint, front, pareto_optimal
from dialdown.report.interactive import (
    front_html,
    layer_effects_html,
    plotly_js,
    ranked_neurons_html,
)
from dialdown.report.paper_figures import (
    figure_1_layer_effects,
    figure_2a_group_contribution,
    figure_2b_ranked_share,
    figure_2c_group_shift,
    figure_3_top_aligned,
    figure_4_shift_distribution,
    figure_7_lower_ranks,
    figure_8_layer_group,
)
from dialdown.report.style import as_svg

FIGURES: list[Callable[[NeuronTable], Figure]] = [
    figure_1_layer_effects,
    figure_2a_group_contribution,
    figure_2b_ranked_share,
    figure_2c_group_shift,
    figure_3_top_aligned,
    figure_4_shift_distribution,
    figure_7_lower_ranks,
    figure_8_layer_group,
]


def made(
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
    return NeuronTable(
        pa.table({name: values.ravel() for name, values in columns.items()}), shape, record
    )


def group_of(cosine: float, mean: float) -> str | None:
    """METHOD §3, one neuron at a time."""
    if cosine == 0 or mean == 0:
        return None
    return ("T" if cosine > 0 else "A") + ("P" if mean > 0 else "N")


def rows(table: NeuronTable) -> list[dict[str, Any]]:
    """The table as a list, each neuron with its group where its projection fell."""
    listed: list[dict[str, Any]] = table.arrow.to_pylist()
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


def panels(figure: Figure) -> list[Any]:
    """The axes, whose artists are read without regard to their classes."""
    return list(figure.axes)


def heights(container: Any) -> list[float]:
    return [bar.get_height() for bar in container]


def line(axes: Any, label: str) -> Any:
    """The line with this label, (n, 2)."""
    (found,) = [one for one in axes.lines if one.get_label() == label]
    return found.get_xydata()


def texts(figure: Figure) -> str:
    """All that is written in a figure."""
    return "\n".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


def test_layer_effects_are_the_sums_of_each_sign() -> None:
    table = made()
    each, total = panels(figure_1_layer_effects(table))
    by_layer = [
        [row["projection_change"] for row in rows(table) if row["layer"] == layer]
        for layer in range(4)
    ]
    up = [math.fsum(x for x in layer if x > 0) for layer in by_layer]
    down = [math.fsum(x for x in layer if x < 0) for layer in by_layer]
    assert heights(each.containers[0]) == pytest.approx(up)
    assert heights(each.containers[1]) == pytest.approx(down)
    assert line(each, "net")[:, 1] == pytest.approx([math.fsum(layer) for layer in by_layer])
    cumulated = [[math.fsum(values[: end + 1]) for end in range(4)] for values in (up, down)]
    for drawn, wanted in zip(total.lines, [*cumulated, np.sum(cumulated, axis=0)], strict=False):
        assert drawn.get_ydata() == pytest.approx(wanted)


@pytest.mark.parametrize("kind", ["plain", "sparse"])
def test_contributions_of_groups_are_shares_of_the_whole_reduction(kind: str) -> None:
    table = made(kind=kind)
    fallen = falling(table)
    names: list[str | None] = [*GROUPS, *([None] if kind == "sparse" else [])]
    whole = math.fsum(row["projection_change"] for row in fallen)
    wanted = [
        math.fsum(row["projection_change"] for row in fallen if row["group"] == name) / whole
        for name in names
    ]
    (axes,) = panels(figure_2a_group_contribution(table))
    assert [bar.get_height() for bars in axes.containers for bar in bars] == pytest.approx(wanted)
    assert sum(wanted) == pytest.approx(1)
    counts = [sum(row["group"] == name for row in fallen) for name in names]
    (lines,) = axes.collections
    assert [segment[0, 1] for segment in lines.get_segments()] == pytest.approx(
        [one / len(fallen) for one in counts]
    )
    assert [label.get_text().split("\n")[1] for label in axes.get_xticklabels()] == [
        f"{one}" for one in counts
    ]


def test_ranked_shares_count_the_groups_among_the_top_k() -> None:
    table = made()
    fallen = falling(table)
    (axes,) = panels(figure_2b_ranked_share(table))
    for name in GROUPS:
        drawn = line(axes, name)
        assert drawn[0, 0] == 10
        assert drawn[-1, 0] == len(fallen)
        for k, share in drawn:
            assert share == pytest.approx(sum(row["group"] == name for row in fallen[: int(k)]) / k)


def test_group_shifts_show_percentiles_median_and_mean() -> None:
    table = made()
    (axes,) = panels(figure_2c_group_shift(table))
    kept = {*between_tenths([row["percent"] for row in rows(table)])}
    segments = [one.get_segments()[0] for one in axes.collections]
    for place, name in enumerate(GROUPS):
        shifts = [
            row["percent"] for row in rows(table) if row["group"] == name and row["percent"] in kept
        ]
        tenths, quarters = (statistics.quantiles(shifts, n=n, method="inclusive") for n in (10, 4))
        wide, narrow, middle = segments[3 * place : 3 * place + 3]
        assert wide[:, 0] == pytest.approx([tenths[0], tenths[-1]])
        assert narrow[:, 0] == pytest.approx([quarters[0], quarters[-1]])
        assert middle[:, 0] == pytest.approx([statistics.median(shifts)] * 2)
        assert axes.lines[place].get_xydata()[0] == pytest.approx([statistics.fmean(shifts), place])


def test_the_most_aligned_neurons_are_drawn_by_their_mean_activations() -> None:
    table = made()
    top = sorted(rows(table), key=lambda row: -row["cosine"])[:30]
    axes, change = panels(figure_3_top_aligned(table, count=30))
    before, after = ([row[f"mean_{when}"] for row in top] for when in ("base", "tuned"))
    assert line(axes, "base")[:, 1] == pytest.approx(before)
    assert line(axes, "tuned")[:, 1] == pytest.approx(after)
    moved = np.sum([heights(container) for container in change.containers], axis=0)
    assert moved == pytest.approx(np.subtract(after, before))


@pytest.mark.parametrize("kind", ["plain", "sparse"])
def test_shift_distribution_counts_the_percentages_between_the_tenths_once(kind: str) -> None:
    table = made(kind=kind)
    kept = between_tenths([row["percent"] for row in rows(table)])
    axes, layers = panels(figure_4_shift_distribution(table))
    counts, edges, _ = axes.patches[0].get_data()
    assert counts.sum() == len(kept)
    assert (edges[0], edges[-1]) == pytest.approx((min(kept), max(kept)))
    # The highest bin is inside the axes, not cut at their edge.
    assert axes.get_ylim()[1] > counts.max()
    mean, deviation = statistics.fmean(kept), statistics.pstdev(kept)
    drawn = [one.get_xdata()[0] for one in axes.lines]
    assert drawn == pytest.approx([mean, mean - deviation, mean + deviation])
    segments = [one.get_segments()[0] for one in layers.collections]
    for layer, (bar, segment) in enumerate(zip(layers.patches, segments, strict=True)):
        ours = between_tenths([row["percent"] for row in rows(table) if row["layer"] == layer])
        assert [bar.get_y(), bar.get_y() + bar.get_height()] == pytest.approx(
            [min(ours), max(ours)]
        )
        mean, deviation = statistics.fmean(ours), statistics.pstdev(ours)
        assert segment[:, 1] == pytest.approx([mean - deviation, mean + deviation])


def test_a_model_without_any_activation_has_no_percentages_to_draw() -> None:
    table = made((2, 7), kind="silent")
    for draw in (figure_2c_group_shift, figure_4_shift_distribution):
        assert_fits(draw(table))


def test_reduction_by_rank_and_the_ranks_of_half_and_most_of_it() -> None:
    table = made()
    fallen = [-row["projection_change"] for row in falling(table)]
    figure = figure_7_lower_ranks(table)
    total, single = panels(figure)
    for k, share in total.lines[0].get_xydata():
        assert share == pytest.approx(math.fsum(fallen[: int(k)]) / math.fsum(fallen))
    for k, share in single.lines[0].get_xydata():
        assert share == pytest.approx(fallen[int(k) - 1] / math.fsum(fallen))
    for percent in (50, 90):
        rank = next(
            k
            for k in range(len(fallen))
            if math.fsum(fallen[:k]) >= percent / 100 * math.fsum(fallen)
        )
        assert f"{rank} neurons bring {percent} %" in texts(figure)


def test_decoded_neurons_are_listed_by_rank_with_what_the_font_can_draw() -> None:
    table = made()
    first, tenth = falling(table)[0], falling(table)[9]
    decoded = {
        (row["layer"], row["neuron"]): text
        for row, text in ((tenth, "good\n$x$"), (first, "毒 <b> & " + "w" * 90))
    }
    written = texts(figure_7_lower_ranks(table, decoded=decoded))
    assert f"1  rank 1, layer {first['layer']}, neuron {first['neuron']}: □ <b> & www" in written
    assert f"2  rank 10, layer {tenth['layer']}, neuron {tenth['neuron']}: good□$x$" in written


@pytest.mark.parametrize("place", ["rising", "outside"])
def test_a_decoded_neuron_without_a_rank_is_refused(place: str) -> None:
    table = made()
    risen = next(row for row in rows(table) if row["projection_change"] > 0)
    neuron = (risen["layer"], risen["neuron"]) if place == "rising" else (0, 50)
    with pytest.raises(DialdownError, match=f"Neuron {neuron[1]} of layer {neuron[0]}"):
        figure_7_lower_ranks(table, decoded={neuron: "x"})


@pytest.mark.parametrize("kind", ["plain", "sparse"])
def test_layers_are_stacked_by_group_to_all_that_fell(kind: str) -> None:
    table = made(kind=kind)
    (axes,) = panels(figure_8_layer_group(table))
    names: list[str | None] = [*GROUPS, *([None] if kind == "sparse" else [])]
    fallen = falling(table)
    tops = np.zeros(4)
    for name, bars in zip(names, axes.containers, strict=True):
        ours = [row for row in fallen if row["group"] == name]
        wanted = [
            -math.fsum(row["projection_change"] for row in ours if row["layer"] == layer)
            for layer in range(4)
        ]
        assert heights(bars) == pytest.approx(wanted)
        assert [bar.get_y() for bar in bars] == pytest.approx(tops)
        tops += wanted
    each, _ = panels(figure_1_layer_effects(table))
    assert tops == pytest.approx([-one for one in heights(each.containers[1])])


@pytest.mark.parametrize("draw", FIGURES)
@pytest.mark.parametrize(
    ("shape", "kind"),
    [((30, 400), "plain"), ((1, 60), "still"), ((3, 40), "positive"), ((2, 7), "sparse")],
)
def test_figures_fit_name_their_protocol_and_count(
    draw: Any, shape: tuple[int, int], kind: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw(made(shape, kind=kind, protocol="paper"))
        assert_fits(figure)
        written = texts(figure)
    assert "· paper" in written
    assert f"{shape[0]} × {shape[1]} neurons" in written
    assert "2,431 and 2,390 positions" in written


def assert_fits(figure: Figure) -> None:
    """Nothing that is drawn reaches over the edge of the page."""
    engine = figure.get_layout_engine()
    assert engine
    engine.execute(figure)
    inside, page = figure.get_tightbbox(), figure.bbox_inches
    assert min(inside.x0, inside.y0) >= -0.01
    assert inside.x1 <= page.x1 + 0.01
    assert inside.y1 <= page.y1 + 0.01
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("draw", [*FIGURES, layer_effects_html, ranked_neurons_html])
def test_a_table_without_a_tuned_model_is_refused(draw: Any) -> None:
    table = made()
    alone = NeuronTable(
        table.arrow.select(["cosine", "mean_base", "projection_base"]), table.shape, table.record
    )
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
    ranked = ranking(NeuronTable(pa.table(columns), (2, 3), {"protocol": "strict"}))
    assert sorted(ranked.order.tolist()) == [
        place for place, change in enumerate(changes) if change < 0
    ]
    assert all(a >= b > 0 for a, b in zip(ranked.reduction, ranked.reduction[1:], strict=False))
    assert [cosines[place] for place in ranked.order] == [
        (1.0, 1.0, -1.0, -1.0, 0.0)[one] for one in ranked.group
    ]
    if len(ranked.order):
        assert ranked.cumulated[-1] == 1
        assert ranked.share.sum() == pytest.approx(1)
        assert ranked.places(4)[[0, -1]].tolist() == [0, len(ranked.order) - 1]


def estimate(mean: float, spread: float = 0.02, n: int = 128) -> Estimate:
    return Estimate(mean, mean - spread, mean + spread, n)


def point(
    family: str, strength: float, toxicity: float, price: float, *, name: str = ""
) -> FrontPoint:
    return FrontPoint(
        family,
        name or family,
        strength,
        estimate(toxicity),
        estimate(price, price / 5, n=12),
        estimate(0.8 * price, price / 6, n=12),
    )


POINTS = [
    point("none", 0, 0.4, 0.0),
    point("edit_probe_set", 0.5, 0.04, 6.1),
    point("edit_probe_set", 0.2, 0.12, 2.1),
    point("dpo", 60, 0.06, 0.03),
    point("dpo", 20, 0.2, 0.01),
    point("random_neurons_scale", 0.5, 0.3, 3.0),
]


def test_the_front_joins_a_family_in_order_of_strength_with_intervals_both_ways() -> None:
    for axes, factor in zip(panels(front(POINTS, "strict")), (1, 0.8), strict=True):
        assert line(axes, FAMILIES["edit_probe_set"].label) == pytest.approx(
            np.array([[2.1 * factor, 0.12], [6.1 * factor, 0.04]])
        )
        assert line(axes, FAMILIES["dpo"].label) == pytest.approx(
            np.array([[0.01 * factor, 0.2], [0.03 * factor, 0.06]])
        )
        rings = line(axes, "Pareto-optimal")
        assert sorted(rings[:, 1]) == pytest.approx([0.04, 0.06, 0.2, 0.4])
        segments = [segment for one in axes.collections for segment in one.get_segments()]
        across = [
            [6.1 * factor - (6.1 / 5 if factor == 1 else 6.1 / 6), 0.04],
            [6.1 * factor + (6.1 / 5 if factor == 1 else 6.1 / 6), 0.04],
        ]
        assert any(np.allclose(segment, across) for segment in segments)
        assert any(
            np.allclose(segment, [[6.1 * factor, 0.02], [6.1 * factor, 0.06]])
            for segment in segments
        )


def test_the_front_fits_with_every_family_in_it() -> None:
    everything = [
        point(family, s, 0.4 - 0.02 * i - 0.1 * s, 0.003 * 2**i * (1 + s))
        for i, family in enumerate(FAMILIES)
        for s in (0, 1, 2)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = front(everything, "paper")
        assert_fits(figure)
        written = texts(figure)
    assert all(look.label in written for look in FAMILIES.values())
    assert "· paper" in written
    assert "128 prompts, 12 blocks" in written


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


@pytest.mark.parametrize("draw", [front, front_html])
def test_a_front_that_cannot_be_drawn_is_refused(draw: Any) -> None:
    with pytest.raises(DialdownError, match="no points"):
        draw([], "strict")
    with pytest.raises(DialdownError, match="did you mean 'edit_probe_set'"):
        draw([point("edit_probe_sett", 0, 0.1, 0.1)], "strict")


def test_saved_figures_are_the_same_bytes_each_time_and_small(tmp_path: Path) -> None:
    table = made((6, 100))
    once, again = (
        save(figure_8_layer_group(table), tmp_path / name / "figure 8.1") for name in ("a", "b")
    )
    assert [path.name for path in once] == ["figure 8.1.png", "figure 8.1.svg"]
    assert [path.read_bytes() for path in once] == [path.read_bytes() for path in again]
    assert once[0].read_bytes().startswith(b"\x89PNG")
    assert once[1].stat().st_size < 300_000


def parsed(fragment: str) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
    """The id, traces and layout a fragment hands to plotly.js."""
    call = re.search(r'Plotly\.newPlot\(\s*"([^"]+)",\s*', fragment)
    assert call
    decoder = json.JSONDecoder()
    traces, end = decoder.raw_decode(fragment, call.end())
    start = end + len(re.match(r",\s*", fragment[end:])[0])  # type: ignore[index]  # plotly writes its arguments so
    layout, _ = decoder.raw_decode(fragment, start)
    return call[1], traces, layout


def assert_offline(fragment: str) -> None:
    assert not re.search(r"https?:|//|\bsrc=|href", fragment)


def test_interactive_layer_effects_hold_the_sums() -> None:
    table = made()
    fragment = layer_effects_html(table)
    name, (up, down, net), layout = parsed(fragment)
    go.Figure(data=[up, down, net], layout=layout)  # raises on a property plotly.js does not know
    change = table.grid("projection_change")
    assert up["y"] == pytest.approx(np.maximum(change, 0).sum(1), rel=1e-5)
    assert down["y"] == pytest.approx(np.minimum(change, 0).sum(1), rel=1e-5)
    assert net["y"] == pytest.approx(change.sum(1), rel=1e-5, abs=1e-9)
    assert name == "layer-effects-strict"
    assert "strict" in layout["title"]["text"]
    assert fragment == layer_effects_html(made())
    assert_offline(fragment)


def test_interactive_ranks_are_few_and_name_their_neurons_literally() -> None:
    table = made((20, 1000))
    fallen = falling(table)
    rank = 6789
    chosen = (fallen[rank - 1]["layer"], fallen[rank - 1]["neuron"])
    fragment = ranked_neurons_html(table, decoded={chosen: '<i>"kind"</i> & </script>'})
    _, (trace,), layout = parsed(fragment)
    go.Figure(data=[trace], layout=layout)
    assert len(trace["x"]) <= 2001
    whole = math.fsum(row["projection_change"] for row in fallen)
    for k, share in list(zip(trace["x"], trace["y"], strict=True))[::200]:
        assert share == pytest.approx(
            100 * math.fsum(row["projection_change"] for row in fallen[:k]) / whole, rel=1e-5
        )
    hover = trace["hovertext"][trace["x"].index(rank)]
    assert hover.startswith(
        f"rank {rank:,}: layer {chosen[0]}, neuron {chosen[1]}<br>group "
        f"{fallen[rank - 1]['group']}<br>"
    )
    assert hover.endswith('tokens &lt;i&gt;"kind"&lt;/i&gt; &amp; &lt;/script&gt;')
    assert fragment.count("</script>") == 1
    assert_offline(fragment)


@pytest.mark.parametrize("kind", ["still", "sparse"])
def test_interactive_figures_of_odd_tables(kind: str) -> None:
    table = made((1, 20), kind=kind)
    for fragment in (layer_effects_html(table), ranked_neurons_html(table)):
        _, traces, layout = parsed(fragment)
        go.Figure(data=traces, layout=layout)
        assert "NaN" not in fragment


def test_the_interactive_front_shows_every_number_and_no_markup() -> None:
    points = [*POINTS, point("patch", 3, 0.1, 0.5, name="<i>TP</i>")]
    fragment = front_html(points, "strict")
    _, traces, layout = parsed(fragment)
    go.Figure(data=traces, layout=layout)
    patch = next(trace for trace in traces if trace["name"] == FAMILIES["patch"].label)
    assert patch["hovertext"] == [
        "patching: &lt;i&gt;TP&lt;/i&gt;<br>strength 3<br>score 0.1 [0.08, 0.12], n = 128<br>"
        "change of log-perplexity 0.5 [0.4, 0.6], n = 12<br>KL 0.4 [0.317, 0.483], n = 12"
    ]
    assert patch["y"] == [0.1]
    assert [
        0.1 + patch["error_y"]["array"][0],
        0.1 - patch["error_y"]["arrayminus"][0],
    ] == pytest.approx([0.12, 0.08])
    assert 0.01 * np.sinh(patch["x"]) == pytest.approx([0.5], rel=1e-4)
    assert "<i>" not in fragment
    assert "\\u003ci" not in fragment
    assert fragment == front_html(points, "strict")
    assert fragment != front_html(points, "paper")
    assert_offline(fragment)


def test_plotly_js_can_be_embedded_in_a_page() -> None:
    source = plotly_js()
    assert "Plotly" in source
    assert "</script" not in source.lower()


def test_no_number_of_a_figures_text_is_cut_short_on_the_page() -> None:
    figure = Figure()
    axes = figure.add_subplot()
    axes.set_title("0.0001 % and 3.14159 #0072b2")
    svg = as_svg(figure, "ticks", "a figure")
    assert "0.0001 % and 3.14159 #0072b2" in svg
    # Paths are still short.
    assert not re.findall(r'd="[^"]*\d\.\d{4}', svg)
