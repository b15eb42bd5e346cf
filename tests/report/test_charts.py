"""The trade-off and the controls: the points they draw, and which of them are best."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialdown.report.charts import Point, Price, controls, pareto_optimal, tradeoff
from dialdown.report.drawing import inline
from dialdown.report.names import FAMILIES
from helpers.charts import POINTS, column, drawn, estimate, point, rows_of, views


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
