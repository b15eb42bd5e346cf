"""Bootstrap intervals and the agreement of scorers, against scipy and scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from dialdown import DialdownError
from dialdown.evaluation import Estimate, estimate
from dialdown.evaluation.bootstrap import agreement, change_sign
from dialdown.evaluation.row import Measured


def test_the_interval_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).exponential(size=80)
    got = estimate(values)
    reference = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert got.mean == pytest.approx(values.mean())
    width = reference.high - reference.low
    assert got.low == pytest.approx(reference.low, abs=0.05 * width)
    assert got.high == pytest.approx(reference.high, abs=0.05 * width)
    assert got.n == 80


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = [(e := estimate(rng.normal(3, 1, size=60))).low < 3 < e.high for _ in range(200)]
    assert 0.89 < np.mean(hits) < 0.99


def test_a_weighted_mean_is_over_tokens() -> None:
    values, weights = [1.0, 2.0, 6.0], [10, 10, 1]
    got = estimate(values, weights=weights)
    assert got.mean == pytest.approx((10 + 20 + 6) / 21)
    assert 1 <= got.low < got.mean < got.high <= 6
    # Equal weights change nothing at all.
    assert estimate(values, weights=[7, 7, 7]) == estimate(values)


def test_intervals_are_seeded_and_none_without_values() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert estimate(values) == estimate(values)
    assert estimate(values, seed=1).low != estimate(values).low
    assert estimate([]) is None
    single = estimate([2.0])
    assert (single.low, single.mean, single.high, single.n) == (2, 2, 2, 1)


def measured(
    values: Sequence[float], name: str = "toxicity", tokens: Sequence[int] = ()
) -> Measured:
    return Measured({name: [*values]}, [*tokens], [], [], 0)


def test_a_comparison_is_paired() -> None:
    """A constant difference has no uncertainty, however much the prompts differ."""
    base = np.random.default_rng(0).normal(size=50)
    change = measured(base - 0.25).estimate("toxicity", measured(base))
    assert (change.mean, change.low, change.high) == pytest.approx((-0.25, -0.25, -0.25))
    assert measured(base).estimate("toxicity").high - measured(base).estimate("toxicity").low > 0.3
    with pytest.raises(
        DialdownError, match="50 units here and on 49 there, which cannot be paired"
    ):
        measured(base).estimate("toxicity", measured(base[1:]))


def test_units_without_a_value_are_left_out() -> None:
    nan = float("nan")
    assert measured([1, nan, 3]).estimate("toxicity").mean == 2
    assert measured([1, nan, 3]).estimate("toxicity").n == 2
    assert measured([nan, nan]).estimate("toxicity") is None
    pair = measured([1, nan, 3, 5]).estimate("toxicity", measured([0, 1, nan, 1]))
    assert (pair.mean, pair.n) == (2.5, 2)


def test_log_perplexity_is_weighted_by_tokens() -> None:
    values = measured([1.0, 4.0], "log_ppl", tokens=[30, 10])
    assert values.estimate("log_ppl").mean == pytest.approx(1.75)
    assert values.estimate(
        "log_ppl", measured([1.0, 3.0], "log_ppl", tokens=[30, 10])
    ).mean == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Estimate(-0.1, -0.2, -0.05, 40), "less"),
        (Estimate(0.1, 0.05, 0.2, 40), "more"),
        (Estimate(-0.1, -0.2, 0.0, 40), "not told apart"),
        (Estimate(-0.1, -0.2, -0.05, 9), "not told apart"),
    ],
)
def test_no_direction_where_the_interval_holds_zero_or_the_units_are_few(
    change: Estimate, said: str
) -> None:
    assert change_sign(change) == said


shares = st.integers(0, 4).map(lambda k: k / 4)  # few values, so that ties are common


two_scorers = st.integers(3, 25).flatmap(
    lambda n: st.tuples(
        st.lists(shares, min_size=n, max_size=n), st.lists(shares, min_size=n, max_size=n)
    )
)


def only_row(scores: dict[str, Sequence[float]]) -> dict[str, float | None]:
    """The one row of two scorers, with every warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = agreement(scores)
    (row,) = frame.to_dicts()
    return row


@settings(max_examples=60, deadline=None)
@given(two_scorers)
def test_agreement_is_what_scipy_and_scikit_learn_say(
    scores: tuple[list[float], list[float]],
) -> None:
    x, y = scores
    row = only_row({"a": x, "b": y})
    a, b = np.array(x) > 0.5, np.array(y) > 0.5
    if len({*x}) == 1 or len({*y}) == 1:
        assert (row["spearman"], row["spearman_low"], row["spearman_high"]) == (None, None, None)
    else:
        assert row["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
        assert -1 - 1e-12 <= row["spearman_low"] <= row["spearman_high"] <= 1 + 1e-12
    if len({*a, *b}) == 1:
        assert row["kappa"] is None
    else:
        assert row["kappa"] == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)
    assert (row["both"], row["none"]) == (np.mean(a & b), np.mean(~a & ~b))
    assert row["one"] == pytest.approx(np.mean(a ^ b))
    assert row["n"] == len(x)


@settings(max_examples=20, deadline=None)
@given(two_scorers)
def test_agreement_is_symmetric_and_ranks_see_no_monotone_change(
    scores: tuple[list[float], list[float]],
) -> None:
    x, y = scores
    row, back = only_row({"a": x, "b": y}), only_row({"a": y, "b": x})
    bent = only_row({"a": [value**3 for value in x], "b": y})
    for column in ("spearman", "spearman_low", "spearman_high"):
        assert row[column] == pytest.approx(back[column], abs=1e-12)
        assert row[column] == bent[column]
    assert (row["kappa"], row["both"], row["one"]) == (back["kappa"], back["both"], back["one"])


def test_the_interval_is_the_percentile_bootstrap() -> None:
    rng = np.random.default_rng(5)
    x = rng.random(15).round(1)
    y = np.clip(x + rng.normal(0, 0.3, 15), 0, 1)
    draws = np.random.default_rng(0).integers(0, 15, size=(2000, 15))
    resampled = [stats.spearmanr(x[rows], y[rows]).statistic for rows in draws]
    row = only_row({"a": x, "b": y})
    expected = np.percentile(resampled, [2.5, 97.5])
    assert (row["spearman_low"], row["spearman_high"]) == pytest.approx(tuple(expected), abs=1e-12)


def test_a_text_without_a_number_is_left_out_of_its_pairs_only() -> None:
    nan = float("nan")
    scores = {
        "a": [0.1, nan, 0.9, 0.4, 0.8],
        "b": [0.2, 0.3, nan, 0.6, 0.7],
        "c": [0.3, 0.1, 0.8, 0.9, 0.2],
    }
    frame = agreement(scores)
    assert frame.select("first", "second", "n").rows() == [
        ("a", "b", 3),
        ("a", "c", 4),
        ("b", "c", 4),
    ]
    whole = only_row({"a": [0.1, 0.4, 0.8], "b": [0.2, 0.6, 0.7]})
    assert frame.row(0, named=True) == whole


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_texts_have_no_correlation(n: int) -> None:
    row = only_row({"a": [0.1, 0.9][:n], "b": [0.2, 0.8][:n]})
    assert (row["spearman"], row["spearman_low"], row["spearman_high"], row["n"]) == (
        None,
        None,
        None,
        n,
    )
    assert (row["both"], row["kappa"]) == {0: (None, None), 1: (0, None), 2: (0.5, 1)}[n]


def test_resamples_that_are_constant_leave_an_interval() -> None:
    """One text of many differs, so more than a third of the resamples lack it."""
    row = only_row({"a": [0.0] * 9 + [1.0], "b": [0.1] * 9 + [0.9]})
    assert (row["spearman"], row["spearman_low"], row["spearman_high"]) == pytest.approx((1, 1, 1))


def test_an_empty_frame_keeps_its_types() -> None:
    frame = agreement({"a": [], "b": []})
    assert frame.schema["spearman"] == pl.Float64
    assert frame.schema["n"] == pl.Int64


def test_what_cannot_agree_is_refused() -> None:
    with pytest.raises(DialdownError, match="needs two scorers and got 1"):
        agreement({"a": [0.1]})
    with pytest.raises(DialdownError, match=r"different numbers of texts .*'b': 1"):
        agreement({"a": [0.1, 0.2], "b": [0.1]})


def test_an_estimate_is_printed_with_its_interval() -> None:
    change = Estimate(-0.0123, -0.5, 0.25, 7)
    assert f"{change:+.3f}" == "−0.012 [−0.500, +0.250]"
    assert f"{change:.2g}" == "−0.012 [−0.5, 0.25]"
    assert f"{change}" == str(change) == "-0.012 [-0.500, 0.250]"
