"""Dialling to a price, on made-up costs."""

from __future__ import annotations

from typing import Any

import pytest

from dialdown.study.dial import dialled


@pytest.mark.parametrize(
    ("cost", "strength", "spent"),
    [
        (lambda s: 0.04 * s**2, 1.5, 0.09),
        (lambda s: 0.01 * s, 9.0, 0.09),
        (lambda s: 0.0, 50.0, 0.0),
        (lambda s: 1e-6 * s, 50.0, 5e-5),
        (lambda s: 0.01 if s < 0.3 else float("inf"), 0.3, 0.01),
        (lambda s: 1.0, 0.0, 0.0),
    ],
)
def test_a_dial_finds_the_greatest_strength_within_the_price(
    cost: Any, strength: float, spent: float
) -> None:
    dial = dialled(cost, 0.09, 50.0)
    assert dial[0] == pytest.approx(strength, rel=0.04)
    assert dial[0] <= strength
    assert dial[1] == pytest.approx(spent, rel=0.04)


@pytest.mark.parametrize("size", [0.106, 0.2, 5.0])
def test_a_dial_reaches_the_price_where_the_cost_rises_slowly(size: float) -> None:
    """As that of an edit which breaks the attention sinks first."""
    strength, spent = dialled(lambda s: size * s**0.286, 0.09, 50.0)
    assert 0.97 * 0.09 <= spent <= 0.09
    assert strength == pytest.approx((spent / size) ** (1 / 0.286))
