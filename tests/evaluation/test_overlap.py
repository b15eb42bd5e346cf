"""F1 and repetition (METHOD §6)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialdown.evaluation.overlap import is_degenerate, repetition, token_f1


@pytest.mark.parametrize(
    ("given", "gold", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], 1.0),
        ([1, 2], [3, 4], 0.0),
        ([1, 1, 1, 2], [1, 1, 3], 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)),
        ([2, 1], [1, 2], 1.0),
        ([], [1], 0.0),
        ([], [], 0.0),
    ],
)
def test_f1_is_of_multisets(given: list[int], gold: list[int], expected: float) -> None:
    assert token_f1(given, gold) == pytest.approx(expected)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), max_size=8), st.lists(st.integers(0, 5), max_size=8))
def test_f1_is_symmetric_and_a_fraction(a: list[int], b: list[int]) -> None:
    assert token_f1(a, b) == token_f1(b, a)
    assert 0 <= token_f1(a, b) <= 1
    assert (token_f1(a, b) == 1) == (sorted(a) == sorted(b) and bool(a))


@pytest.mark.parametrize(
    ("tokens", "expected", "degenerate"),
    [
        ([], None, True),
        ([1], None, False),
        ([1, 2, 3, 4], 0.0, False),
        ([1, 1, 1, 1], 2 / 3, True),
        ([1, 2, 1, 2, 1], 0.5, False),
        ([1, 2, 1, 2, 1, 2], 0.6, True),
    ],
)
def test_repetition_is_the_share_of_two_grams_seen_before(
    tokens: list[int], expected: float | None, degenerate: bool
) -> None:
    assert repetition(tokens) == (None if expected is None else pytest.approx(expected))
    assert is_degenerate(tokens) is degenerate


@pytest.mark.parametrize("tokens", [[1, 2], [1, 1, 1, 1], [3, 1, 2, 3, 1, 2, 3], [5, 4, 3, 2, 1]])
def test_repetition_is_one_minus_distinct_2(tokens: list[int]) -> None:
    distinct = {(tokens[place], tokens[place + 1]) for place in range(len(tokens) - 1)}
    assert repetition(tokens) == pytest.approx(1 - len(distinct) / (len(tokens) - 1))
