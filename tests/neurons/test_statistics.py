"""The numbers of the paper's tables against plain loops, scipy and a naive SVD (METHOD §3)."""

from __future__ import annotations

import warnings
from dataclasses import replace
from statistics import fmean, median, pstdev, quantiles
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from polars.testing import assert_frame_equal

import dialdown as dd
from dialdown import DialdownError
from dialdown.models import LM
from dialdown.neurons import GROUPS, Direction, NeuronTable, statistics, subspace
from dialdown.report import neuron_tables
from helpers import tiny
from helpers.tables import (
    SHAPE,
    compared,
    direction,
    means,
    random_table,
    table_of,
    tuned_of,
    value_vector,
)

PROTOCOLS = ("strict", "paper")


def test_group_shares_are_those_of_a_loop() -> None:
    table = random_table()
    cosine, base, change = (
        table.grid(name).ravel() for name in ("cosine", "mean_base", "projection_change")
    )
    expected = []
    for tuning_free in (False, True):
        members: dict[str, list[float]] = {name: [] for name in GROUPS}
        for c, m, delta in zip(cosine, base, change, strict=True):
            if c and m and (tuning_free or delta < 0):
                members[("T" if c > 0 else "A") + ("P" if m > 0 else "N")].append(delta)
        total, reduction = (
            sum(map(len, members.values())),
            sum(delta for delta in change if delta < 0),
        )
        expected += [
            (name, tuning_free, len(deltas), len(deltas) / total, sum(deltas) / reduction)
            for name, deltas in members.items()
        ]
    frame = statistics.group_shares(table)
    columns = ["group", "tuning_free", "count", "share", "reduction_share"]
    assert_frame_equal(frame, pl.DataFrame(expected, schema=columns, orient="row"), rel_tol=1e-12)


finite = st.floats(-1e3, 1e3, allow_subnormal=False)


@given(hnp.arrays(np.float64, (4, 2, 3), elements=finite))
def test_shares_of_the_four_groups_add_up(values: Any) -> None:
    table = table_of(*values)
    frame = statistics.group_shares(table)
    for tuning_free in (False, True):
        rows = frame.filter(pl.col("tuning_free") == tuning_free)
        count = sum(int(mask.sum()) for mask in table.groups(changed=not tuning_free).values())
        assert rows["count"].sum() == count
        assert rows["share"].sum() == pytest.approx(1 if count else 0)
        assert rows["share"].null_count() == (0 if count else 4)
    changed = frame.filter(~pl.col("tuning_free"))
    if (values[3] < 0).any():
        # Only neurons with an exact zero are missing from the four groups.
        assert (
            -1e-12
            <= changed["reduction_share"].min()
            <= changed["reduction_share"].sum()
            <= 1 + 1e-12
        )
    else:
        assert changed["reduction_share"].null_count() == 4


def test_signs_and_reducing_share_are_counts() -> None:
    table = random_table()
    size = table.to_polars().height
    assert statistics.negative_shares(table) == {
        name: sum(value < 0 for value in table.grid(f"mean_{name}").ravel()) / size
        for name in ("base", "tuned")
    }
    assert (
        statistics.reducing_share(table)
        == sum(x < 0 for x in table.grid("projection_change").ravel()) / size
    )


def test_correlations_are_pearsons() -> None:
    table = random_table(shape=(3, 200))
    cosine, base, tuned = (
        table.grid(name).ravel() for name in ("cosine", "mean_base", "mean_tuned")
    )
    correlations = statistics.correlations(table)
    for name, other in (("shift_vs_cosine", cosine), ("shift_vs_activation", base)):
        x, y = base - tuned - (base - tuned).mean(), other - other.mean()
        r = sum(a * b for a, b in zip(x, y, strict=True)) / np.sqrt(sum(x**2) * sum(y**2))
        # The p of Pearson's r by its t distribution, which scipy computes by a beta distribution.
        p = 2 * scipy.stats.t.sf(abs(r) * np.sqrt((600 - 2) / (1 - r**2)), 600 - 2)
        assert correlations[name]["r"] == pytest.approx(r, rel=1e-9)
        assert correlations[name]["p"] == pytest.approx(p, rel=1e-6)
        assert correlations[name]["n"] == 600


def test_a_shift_has_the_sign_of_the_published_one() -> None:
    rng = np.random.default_rng(3)
    cosine, base = rng.standard_normal((2, 4, 50))
    # Every mean moves towards zero, as published: 3.11 to 16.71 % of itself on average, with r =
    # .033 to .347.
    table = table_of(
        cosine, base, 0.9 * base, -np.ones_like(base), protocol="paper", model="gpt2-medium"
    )
    beside = (
        neuron_tables.table_17_correlations(table)
        .filter(pl.col("pair") == "shift_vs_activation")
        .row(0, named=True)
    )
    assert beside["r"] == pytest.approx(1)
    assert beside["published_gpt2-medium_r"] == 0.263
    overall = neuron_tables.section_5_1_shifts(table).row(-1, named=True)
    assert overall["percent"] == pytest.approx(10)
    assert overall["published_gpt2-medium_percent"] == 3.11


def test_a_model_that_did_not_change_has_no_shares_and_no_warnings() -> None:
    rng = np.random.default_rng(0)
    cosine, base = rng.standard_normal((2, 3, 8))
    table = table_of(cosine, base, base, np.zeros_like(base))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert statistics.group_shares(table)["reduction_share"].null_count() == 8
        constant = {"r": None, "p": None, "n": 24}
        assert statistics.correlations(table)["shift_vs_cosine"] == constant
        assert statistics.reducing_share(table) == 0
        assert statistics.shifts(table)["percent"].to_list() == [0] * 4
        silent = table_of(cosine, np.zeros_like(base), base, np.zeros_like(base))
        assert statistics.shifts(silent)["percent"].null_count() == 4
        assert statistics.shifts(silent)["percent_median"].null_count() == 4


def trimmed_percents(base: Any, tuned: Any) -> list[float]:
    """Section 5.1, one neuron at a time: signed, of the base's own mean, between the 10th and the
    90th percentile.
    """
    percents = [100 * (a - b) / a for a, b in zip(base, tuned, strict=True) if a]
    low, *_, high = quantiles(percents, n=10, method="inclusive")
    return [percent for percent in percents if low <= percent <= high]


def check_shifts(table: NeuronTable) -> None:
    frame = statistics.shifts(table)
    assert frame["layer"].to_list() == [*range(table.shape[0]), None]
    for row in frame.iter_rows(named=True):
        part = slice(None) if row["layer"] is None else slice(row["layer"], row["layer"] + 1)
        base, tuned, cosine = (
            table.grid(n)[part].ravel() for n in ("mean_base", "mean_tuned", "value_cosine")
        )
        shift = [abs(b - a) for a, b in zip(base, tuned, strict=True)]
        percents = trimmed_percents(base, tuned)
        assert row == {
            "layer": row["layer"],
            "value_cosine_mean": pytest.approx(sum(cosine) / len(cosine)),
            "value_cosine_min": min(cosine),
            "shift_mean": pytest.approx(sum(shift) / len(shift)),
            "shift_median": pytest.approx(np.median(shift)),
            "percent": pytest.approx(fmean(percents)),
            "percent_sd": pytest.approx(pstdev(percents)),
            "percent_median": pytest.approx(
                median(100 * (a - b) / a for a, b in zip(base, tuned, strict=True) if a)
            ),
        }


def test_shifts_by_layer_and_over_all() -> None:
    check_shifts(random_table())


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "gemma2"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_percent_of_a_model_is_the_signed_mean_between_its_own_tenths(
    name: str, protocol: Any
) -> None:
    check_shifts(compared(tiny.lm(name), protocol))


def test_a_neuron_near_zero_does_not_decide_the_percentage() -> None:
    base, ones = np.full((1, 100), 2.0), np.ones((1, 100))
    tuned = base * 0.99
    base[0, 0], tuned[0, 0] = 1e-12, -0.02
    [layer, overall] = statistics.shifts(table_of(ones, base, tuned, ones)).to_dicts()
    assert layer["percent"] == pytest.approx(1.0)
    assert layer["percent_sd"] == pytest.approx(0.0, abs=1e-9)
    assert layer["percent_median"] == pytest.approx(1.0)
    assert overall == {**layer, "layer": None}


@given(hnp.arrays(np.float64, (2, 3), elements=finite))
def test_opposing_effects_add_up(change: Any) -> None:
    frame = statistics.opposing_effects(table_of(change, change, change, change))
    *layers, overall = frame.to_dicts()
    for layer, deltas in zip(layers, change, strict=True):
        assert layer["down"] == pytest.approx(sum(x for x in deltas if x < 0))
        assert layer["up"] == pytest.approx(sum(x for x in deltas if x > 0))
        assert layer["net"] == pytest.approx(sum(deltas), abs=1e-9)
    for name in ("down", "up", "net"):
        assert overall[name] == pytest.approx(sum(layer[name] for layer in layers), abs=1e-9)


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
    ranked = statistics.ranking(NeuronTable(grids, {"protocol": "strict"}))
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


def test_statistics_need_a_tuned_model(gpt2: LM) -> None:
    table = dd.neuron_table(gpt2, direction(), means("strict"))
    names = (
        "group_shares",
        "negative_shares",
        "correlations",
        "reducing_share",
        "shifts",
        "opposing_effects",
    )
    for name in names:
        with pytest.raises(DialdownError, match=r"dd\.compare"):
            getattr(statistics, name)(table)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_svd_directions_are_those_of_the_whole_matrix(
    named: LM, protocol: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(subspace, "CHUNK", 7)
    along, count = direction(), 20
    every = [value_vector(named, layer, neuron, protocol) for layer, neuron in np.ndindex(SHAPE)]
    unit = np.array([v / np.linalg.norm(v) for v in every])
    cosine = unit @ along.vector / np.linalg.norm(along.vector)
    matrix = unit[np.argsort(-cosine)[:count]].T
    # Left singular vectors by another route: eigenvectors of the outer products.
    _, vectors = np.linalg.eigh(matrix @ matrix.T)
    directions = subspace.svd_subspace(named, along, neurons=count, rank=3, protocol=protocol)
    assert [component.name for component in directions] == ["svd_1", "svd_2", "svd_3"]
    for place, component in enumerate(directions, start=1):
        assert abs(component.vector @ vectors[:, -place]) == pytest.approx(1, abs=1e-5)
        assert component.vector @ along.vector >= 0
        assert (
            component.record["protocol"],
            component.record["of"],
            component.record["neurons"],
        ) == (protocol, "probe", count)


def test_svd_directions_of_a_pruned_model_are_finite(llama: LM) -> None:
    pruned = llama.twin()
    with torch.no_grad():
        pruned.view.layers[1].columns.zero_()
    directions = subspace.svd_subspace(pruned, direction(), neurons=3 * tiny.NEURONS)
    assert all(np.isfinite(component.vector).all() for component in directions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neurons": 0}, "0 value vectors .* from 1 to 72"),
        ({"neurons": 73}, "73 value vectors .* has 72"),
        ({"neurons": 2, "rank": 3}, "span at most 2"),
        ({"neurons": 72, "rank": 17}, "span at most 16"),
        ({"neurons": 8, "rank": 0}, "from 1 to 8"),
    ],
)
def test_impossible_subspaces_are_refused(gpt2: LM, options: Any, message: str) -> None:
    with pytest.raises(DialdownError, match=message):
        subspace.svd_subspace(gpt2, direction(), **options)
    with pytest.raises(DialdownError, match="3 dimensions"):
        subspace.svd_subspace(gpt2, Direction("short", np.ones(3), "residual"), neurons=8)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_sign_conflicts_are_counted_neuron_by_neuron(
    named: LM, protocol: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(subspace, "CHUNK", 7)
    tuned, base, after = tuned_of(named), means(protocol), means(protocol, seed=1)
    directions = [direction(seed) for seed in range(3)]
    counts = [0, 0]
    for place in np.ndindex(SHAPE):
        v, w = (value_vector(lm, *place, protocol) for lm in (named, tuned))
        dots = [
            (
                v @ along.unit,
                after.means[place] * (w @ along.unit) - base.means[place] * (v @ along.unit),
            )
            for along in directions
        ]
        for which, signs in enumerate(zip(*np.sign(dots).tolist(), strict=True)):
            counts[which] += len({*signs} - {0.0}) == 2
    shares = subspace.sign_conflicts(named, tuned, directions, base, after)
    assert [share * 72 for share in shares.values()] == pytest.approx(counts)
    assert all(0 < share < 1 for share in shares.values())


def test_parallel_directions_do_not_conflict_and_opposite_ones_always_do(gpt2: LM) -> None:
    probe = direction()
    opposite = replace(probe, vector=-3 * probe.vector)
    given_means = (means("strict"), means("strict", seed=1))
    same = subspace.sign_conflicts(gpt2, tuned_of(gpt2), [probe, probe], *given_means)
    against = subspace.sign_conflicts(gpt2, tuned_of(gpt2), [probe, opposite], *given_means)
    assert (*same.values(), *against.values()) == (0, 0, 1, 1)
    unchanged = subspace.sign_conflicts(
        gpt2, gpt2, [probe, opposite], given_means[0], given_means[0]
    )
    assert unchanged == {"cosine": 1, "projection_change": 0}


def test_sign_conflicts_of_things_that_do_not_fit_are_refused(gpt2: LM) -> None:
    base = means("strict")
    with pytest.raises(DialdownError, match="1 direction has nothing"):
        subspace.sign_conflicts(gpt2, gpt2, [direction()], base, base)
    with pytest.raises(DialdownError, match="two protocols, strict and paper"):
        subspace.sign_conflicts(gpt2, gpt2, [direction(), direction(1)], base, means("paper"))
    with pytest.raises(DialdownError, match="3 dimensions"):
        subspace.sign_conflicts(
            gpt2, gpt2, [direction(), Direction("short", np.ones(3), "residual")], base, base
        )


def test_sign_conflicts_as_a_table(gpt2: LM) -> None:
    arguments = (
        tuned_of(gpt2),
        [direction(seed) for seed in range(3)],
        means("paper"),
        means("paper", seed=1),
    )
    conflicts = subspace.sign_conflicts(gpt2, *arguments)
    shares = {"paper": conflicts}
    none = (None, None, None)  # the paper has them of one model
    assert neuron_tables.appendix_g_sign_conflicts(shares).rows() == [
        ("paper", "cosine", conflicts["cosine"], 0.747, *none),
        ("paper", "projection_change", conflicts["projection_change"], 0.743, *none),
    ]
