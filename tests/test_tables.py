"""The paper's tables against plain loops, scipy and a naive SVD, and their layout on tiny models
and the invented run.
"""

from __future__ import annotations

import csv
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median, pstdev, quantiles
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from polars.testing import assert_frame_equal

import dialdown as dd
from dialdown.data.csv_tables import write_csv
from dialdown.errors import DialdownError
from dialdown.evaluation.bootstrap import Estimate
from dialdown.evaluation.evaluator import Row
from dialdown.files import read_json
from dialdown.models.lm import LM
from dialdown.neurons import statistics
from dialdown.neurons.activations import NeuronMeans
from dialdown.neurons.directions import Direction
from dialdown.neurons.logit_lens import (
    direction_tokens,
    judged_toxic,
    logit_lens_batch,
    value_vector_tokens,
)
from dialdown.neurons.table import GROUPS, NeuronTable
from dialdown.report import neuron_tables, tables
from dialdown.study import published
from dialdown.study.config import load_config
from dialdown.study.plan import Tables, plan
from dialdown.training.settings import DPOSettings
from helpers import tiny
from helpers.fabricated_run import write_run
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

PAPERS = "gpt2-medium"
PROTOCOLS = ("strict", "paper")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    results = read_json(write_run(tmp_path_factory.mktemp("run")) / "results.json")
    return [Row.from_json(saved) for saved in results["rows"]]


def row(name: str, protocol: Any, toxicity: float | None, **more: Any) -> Row:
    metrics = {} if toxicity is None else {"toxicity": Estimate(toxicity, 0.0, 1.0, 4)}
    facts = {"kind": "set", "control_of": None, "alpha": None, "beta": None, "neurons": 12}
    main, _, control = name.partition("__")
    facts |= {"family": main, "strength": "", "control": control}
    options: Any = {**facts, "metrics": metrics, "toxicity_by": {}, **more}
    return Row(name, protocol=protocol, **options)


# --- statistics of a table


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
            (name, tuning_free, len(found), len(found) / total, sum(found) / reduction)
            for name, found in members.items()
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
        ours = frame.filter(pl.col("tuning_free") == tuning_free)
        count = sum(int(mask.sum()) for mask in table.groups(changed=not tuning_free).values())
        assert ours["count"].sum() == count
        assert ours["share"].sum() == pytest.approx(1 if count else 0)
        assert ours["share"].null_count() == (0 if count else 4)
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
    size = table.arrow.num_rows
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
    found = statistics.correlations(table)
    for name, other in (("shift_vs_cosine", cosine), ("shift_vs_activation", base)):
        x, y = base - tuned - (base - tuned).mean(), other - other.mean()
        r = sum(a * b for a, b in zip(x, y, strict=True)) / np.sqrt(sum(x**2) * sum(y**2))
        # The p of Pearson's r by its t distribution, which scipy computes by a beta distribution.
        p = 2 * scipy.stats.t.sf(abs(r) * np.sqrt((600 - 2) / (1 - r**2)), 600 - 2)
        assert (found[name].r, found[name].p) == (
            pytest.approx(r, rel=1e-9),
            pytest.approx(p, rel=1e-6),
        )
        assert found[name].n == 600


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
    assert beside["published_r"] == 0.263
    overall = neuron_tables.section_5_1_shifts(table).row(-1, named=True)
    assert overall["percent"] == pytest.approx(10)
    assert overall["published_percent"] == 3.11


def test_a_model_that_did_not_change_has_no_shares_and_no_warnings() -> None:
    rng = np.random.default_rng(0)
    cosine, base = rng.standard_normal((2, 3, 8))
    table = table_of(cosine, base, base, np.zeros_like(base))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert statistics.group_shares(table)["reduction_share"].null_count() == 8
        assert statistics.correlations(table)["shift_vs_cosine"] == statistics.Correlation(
            None, None, 24
        )
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
    base, one = np.full((1, 100), 2.0), np.ones((1, 100))
    tuned = base * 0.99
    base[0, 0], tuned[0, 0] = 1e-12, -0.02
    [layer, overall] = statistics.shifts(table_of(one, base, tuned, one)).to_dicts()
    assert layer["percent"] == pytest.approx(1.0)
    assert layer["percent_sd"] == pytest.approx(0.0, abs=1e-9)
    assert layer["percent_median"] == pytest.approx(1.0)
    assert overall == {**layer, "layer": None}


@given(hnp.arrays(np.float64, (2, 3), elements=finite))
def test_opposing_effects_add_up(change: Any) -> None:
    frame = statistics.opposing_effects(table_of(change, change, change, change))
    *layers, overall = frame.to_dicts()
    for found, deltas in zip(layers, change, strict=True):
        assert found["down"] == pytest.approx(sum(x for x in deltas if x < 0))
        assert found["up"] == pytest.approx(sum(x for x in deltas if x > 0))
        assert found["net"] == pytest.approx(sum(deltas), abs=1e-9)
    for name in ("down", "up", "net"):
        assert overall[name] == pytest.approx(sum(found[name] for found in layers), abs=1e-9)


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


# --- the toxic subspace


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_svd_directions_are_those_of_the_whole_matrix(
    named: LM, protocol: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(statistics, "CHUNK", 7)
    along, count = direction(), 20
    every = [value_vector(named, layer, neuron, protocol) for layer, neuron in np.ndindex(SHAPE)]
    unit = np.array([v / np.linalg.norm(v) for v in every])
    cosine = unit @ along.vector / np.linalg.norm(along.vector)
    matrix = unit[np.argsort(-cosine)[:count]].T
    # Left singular vectors by another road: eigenvectors of the outer products.
    values, vectors = np.linalg.eigh(matrix @ matrix.T)
    found = statistics.svd_subspace(named, along, neurons=count, rank=3, protocol=protocol)
    assert [one.name for one in found] == ["svd_1", "svd_2", "svd_3"]
    for place, one in enumerate(found, start=1):
        assert abs(one.vector @ vectors[:, -place]) == pytest.approx(1, abs=1e-5)
        assert one.vector @ along.vector >= 0
        assert one.record["singular_value"] == pytest.approx(np.sqrt(values[-place]), rel=1e-5)
        assert one.record["share_of_squares"] == pytest.approx(values[-place] / count, rel=1e-5)
        assert (one.record["protocol"], one.record["of"], one.record["neurons"]) == (
            protocol,
            "probe",
            count,
        )


def test_svd_directions_of_a_pruned_model_are_finite(llama: LM) -> None:
    pruned = llama.twin()
    with torch.no_grad():
        pruned.view.layers[1].columns.zero_()
    found = statistics.svd_subspace(pruned, direction(), neurons=3 * tiny.NEURONS)
    assert all(np.isfinite(one.vector).all() for one in found)


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
        statistics.svd_subspace(gpt2, direction(), **options)
    with pytest.raises(DialdownError, match="3 dimensions"):
        statistics.svd_subspace(gpt2, Direction("short", np.ones(3), "residual"), neurons=8)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_sign_conflicts_are_counted_neuron_by_neuron(
    named: LM, protocol: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(statistics, "CHUNK", 7)
    tuned, base, after = tuned_of(named), means(protocol), means(protocol, seed=1)
    directions = [direction(seed) for seed in range(3)]
    counts = [0, 0]
    for place in np.ndindex(SHAPE):
        v, w = (value_vector(lm, *place, protocol) for lm in (named, tuned))
        dots = [
            (v @ one.unit, after.means[place] * (w @ one.unit) - base.means[place] * (v @ one.unit))
            for one in directions
        ]
        for which, signs in enumerate(zip(*np.sign(dots).tolist(), strict=True)):
            counts[which] += len({*signs} - {0.0}) == 2
    found = statistics.sign_conflicts(named, tuned, directions, base, after)
    assert (found.cosine * 72, found.projection_change * 72) == (
        pytest.approx(counts[0]),
        pytest.approx(counts[1]),
    )
    assert 0 < found.cosine < 1
    assert 0 < found.projection_change < 1


def test_parallel_directions_do_not_conflict_and_opposite_ones_always_do(gpt2: LM) -> None:
    one = direction()
    opposite = replace(one, vector=-3 * one.vector)
    given_means = (means("strict"), means("strict", seed=1))
    same = statistics.sign_conflicts(gpt2, tuned_of(gpt2), [one, one], *given_means)
    against = statistics.sign_conflicts(gpt2, tuned_of(gpt2), [one, opposite], *given_means)
    assert (same.cosine, same.projection_change, against.cosine, against.projection_change) == (
        0,
        0,
        1,
        1,
    )
    unchanged = statistics.sign_conflicts(
        gpt2, gpt2, [one, opposite], given_means[0], given_means[0]
    )
    assert (unchanged.cosine, unchanged.projection_change) == (1, 0)


def test_sign_conflicts_of_things_that_do_not_fit_are_refused(gpt2: LM) -> None:
    base = means("strict")
    with pytest.raises(DialdownError, match="1 direction has nothing"):
        statistics.sign_conflicts(gpt2, gpt2, [direction()], base, base)
    with pytest.raises(DialdownError, match=r"\(strict\) and .* \(paper\)"):
        statistics.sign_conflicts(gpt2, gpt2, [direction(), direction(1)], base, means("paper"))
    with pytest.raises(DialdownError, match="3 dimensions"):
        statistics.sign_conflicts(
            gpt2, gpt2, [direction(), Direction("short", np.ones(3), "residual")], base, base
        )


# --- what vectors say


def test_the_batched_logit_lens_is_the_lens_one_by_one(named: LM) -> None:
    vectors = np.random.default_rng(0).standard_normal((9, tiny.WIDTH)).astype(np.float32)
    found = logit_lens_batch(named, vectors, k=6)
    assert len(found) == 9
    for vector, line in zip(vectors, found, strict=True):
        alone = dd.logit_lens(named, vector, k=6)
        assert [token for token, _ in line] == [token for token, _ in alone]
        np.testing.assert_allclose(
            [logit for _, logit in line], [logit for _, logit in alone], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_value_vector_tables_show_the_extreme_neurons_and_their_tokens(
    gemma2: LM, protocol: Any
) -> None:
    table = compared(gemma2, protocol)
    cosine = table.grid("cosine")
    most = value_vector_tokens(gemma2, table, count=4, k=3)
    least = value_vector_tokens(gemma2, table, count=4, opposed=True, k=3)
    for frame, sign in ((most, 1), (least, -1)):
        assert frame.columns == [
            "protocol",
            "sign",
            "layer",
            "neuron",
            "cosine",
            "rank",
            "token",
            "logit",
            "toxic",
        ]
        assert frame["rank"].to_list() == [1, 2, 3] * 4
        assert frame.select("protocol", "sign", "toxic").unique().rows() == [(protocol, sign, None)]
        assert frame["cosine"].to_list()[::3] == sorted(cosine.ravel(), key=lambda c: -sign * c)[:4]
        for (layer, neuron), tokens in frame.group_by("layer", "neuron", maintain_order=True):
            assert tokens["cosine"][0] == cosine[layer, neuron]
            alone = dd.logit_lens(gemma2, sign * value_vector(gemma2, layer, neuron, protocol), k=3)
            assert tokens["token"].to_list() == [token for token, _ in alone]
    short = neuron_tables.table_6_value_vectors(most, least, neurons=2)
    assert_frame_equal(short, pl.concat([most.head(6), least.head(6)]))


def test_directions_are_shown_with_their_opposites(llama: LM) -> None:
    probe, contrast = direction(0, "probe", protocol="paper"), direction(1, "contrast")
    frame = direction_tokens(llama, [probe, contrast], k=2)
    lines = frame.group_by("protocol", "direction", "sign", maintain_order=True).agg("token")
    assert lines.rows() == [
        (
            protocol,
            one.name,
            sign,
            [token for token, _ in dd.logit_lens(llama, sign * one.vector, k=2)],
        )
        for one, protocol in ((probe, "paper"), (contrast, None))
        for sign in (1, -1)
    ]
    subspace = statistics.svd_subspace(llama, probe, neurons=20)
    frame = direction_tokens(llama, subspace, signs=(1,), k=2)
    assert frame["direction"].to_list() == [f"svd_{number}" for number in (1, 1, 2, 2, 3, 3)]
    assert frame["token"][0] == dd.logit_lens(llama, subspace[0].vector, k=1)[0][0]


def test_a_judge_is_asked_once_about_each_token(llama: LM) -> None:
    asked: list[str] = []

    def judge(tokens: Sequence[str]) -> list[bool | None]:
        asked.extend(tokens)
        return [None if token == tokens[0] else token == tokens[1] for token in tokens]

    frame = value_vector_tokens(llama, compared(llama), count=20, k=5, judge=judge)
    assert sorted(asked) == sorted({*frame["token"]})
    known = {asked[0]: None} | {token: token == asked[1] for token in asked[1:]}
    assert frame["toxic"].to_list() == [known[token] for token in frame["token"]]
    with pytest.raises(DialdownError, match=r"1 answers for \d+ tokens"):
        value_vector_tokens(llama, compared(llama), judge=lambda tokens: [True])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_judged_neurons_are_the_aligned_ones_with_a_toxic_token(gemma2: LM, protocol: Any) -> None:
    table = compared(gemma2, protocol)
    aligned = table.most_aligned(12)
    tokens = {
        place: {
            token for token, _ in dd.logit_lens(gemma2, value_vector(gemma2, *place, protocol), k=4)
        }
        for place in zip(*np.nonzero(aligned), strict=True)
    }
    said_by = Counter(token for said in tokens.values() for token in said)
    toxic = [token for token, _ in said_by.most_common()[-2:]]

    def judge(given: Sequence[str]) -> list[bool | None]:
        return [True if token in toxic else None for token in given]

    mask = judged_toxic(gemma2, table, judge, count=12, k=4)
    assert {*zip(*np.nonzero(mask), strict=True)} == {
        place for place, said in tokens.items() if said & {*toxic}
    }
    assert 0 < mask.sum() < 12
    assert not judged_toxic(gemma2, table, lambda given: [False] * len(given), count=12).any()


def test_a_table_of_another_model_is_refused(gpt2: LM) -> None:
    with pytest.raises(DialdownError, match=r"shape \(4, 30\) and tiny-gpt2 has 3 layers of 24"):
        value_vector_tokens(gpt2, random_table())
    with pytest.raises(DialdownError, match=r"73 value vectors .* has 72"):
        value_vector_tokens(gpt2, compared(gpt2), count=73)


# --- tables of results


def test_interventions_have_the_rows_and_numbers_of_the_results(rows: list[Row]) -> None:
    frame = tables.table_2_interventions(rows, model=PAPERS)
    assert frame.height == len(rows)
    assert frame.columns[:7] == [
        "intervention",
        "protocol",
        "control_of",
        "kind",
        "alpha",
        "beta",
        "neurons",
    ]
    for found, given_row in zip(frame.iter_rows(named=True), rows, strict=True):
        for metric in ("toxicity", "log_ppl", "f1", "kl", "repetition", "degenerate"):
            mean = given_row.metrics[metric]
            parts = [found[metric], *(found[f"{metric}_{part}"] for part in ("low", "high", "n"))]
            assert parts == [mean.mean, mean.low, mean.high, mean.n]


def test_published_interventions_stand_beside_paper_rows_of_the_same_name(rows: list[Row]) -> None:
    frame = tables.table_2_interventions(rows, model="openai-community/GPT2-Medium")
    with_figures = frame.filter(pl.col("published_toxicity").is_not_null())
    assert {*with_figures["protocol"]} == {"paper"}
    assert with_figures["control_of"].null_count() == with_figures.height
    values = {found["intervention"]: found for found in with_figures.iter_rows(named=True)}
    assert values["none"]["published_toxicity"] == 0.545
    # α = .5 and β = .05, the third of the published strengths; steering with an α of its own has no
    # published figure.
    assert values["edit_probe_set"]["published_toxicity"] == 0.203
    assert values["dpo"]["published_log_ppl"] == 3.15
    assert not {"edit_probe_scale", "steer_probe"} & {*values}
    other = tables.table_2_interventions(rows, model="own/model")
    assert all(
        other[f"published_{name}"].null_count() == len(rows)
        for name in ("toxicity", "log_ppl", "f1")
    )


@pytest.mark.parametrize("model", sorted({*published.MODELS} - {"openai-community/gpt2-medium"}))
def test_every_published_figure_has_one_row_of_a_run_beside_it(model: str) -> None:
    lm = tiny.lm("llama", intermediate_size=300)
    shape = (tiny.LAYERS, 300)
    base, tuned = (
        NeuronMeans(np.random.default_rng(seed).standard_normal(shape), 10, "paper", {})
        for seed in (0, 1)
    )
    probe = direction(residual_norm=3.0)
    table = dd.compare(lm, tuned_of(lm), probe, base, tuned)
    table = table.with_judged(table.most_aligned(9))
    along = [dd.neuron_table(lm, direction(seed), base) for seed in (1, 2)]
    planned = plan(
        "paper",
        Tables(table, *along, probe, direction(2)),
        load_config(preset="full").interventions,
        prompts=9,
        control_prompts=4,
        seed=0,
        model=model,
    )
    made = [
        row(
            one.intervention.name,
            "paper",
            0.1,
            **{
                fact: getattr(one.intervention, fact)
                for fact in ("family", "strength", "control", "control_of", "alpha", "beta")
            },
        )
        for one in planned
    ]
    assert len({one.intervention for one in made}) == len(made)
    frames = [getattr(tables, name)(made, model=model) for name in RESULT_TABLES]
    stated = (
        pl.concat([frame.select("intervention", *PUBLISHED) for frame in frames])
        .unique()
        .drop_nulls(PUBLISHED)
    )
    figures = read_json(Path(published.__file__).with_name("published.json"))
    name = published.MODELS[model]
    expected = [tuple(values[name]) for values in figures["rows"].values()]
    expected += [
        tuple(one[metric] for metric in figures["metrics"]) for one in figures["steering"][name][1:]
    ]
    assert Counter(stated.select(PUBLISHED).iter_rows()) == Counter(expected)
    assert stated["intervention"].null_count() == 0


RESULT_TABLES = ("table_2_interventions", "table_12_steering", "table_19_more_interventions")
PUBLISHED = ["published_toxicity", "published_log_ppl", "published_f1"]


def test_a_metric_that_was_not_measured_is_null() -> None:
    frame = tables.table_2_interventions([row("none", "paper", None)], model=PAPERS)
    assert frame["toxicity"].to_list() == frame["kl_n"].to_list() == [None]


def test_further_interventions_are_the_increasing_neurons_and_named_orderings(
    rows: list[Row],
) -> None:
    activation = row("edit_probe_activation_set", "paper", 0.2, alpha=0.8, beta=0.05)
    control = row(
        "edit_probe_activation_set__beta_zero", "paper", 0.2, control_of="edit_probe_activation_set"
    )
    frame = tables.table_19_more_interventions([*rows, activation, control], model=PAPERS)
    main = frame.filter(pl.col("control_of").is_null())
    assert main["intervention"].to_list() == ["patch_all_increasing"] * 2 + [
        "edit_probe_activation_set"
    ]
    assert frame["control_of"].unique().sort().to_list() == [
        None,
        "edit_probe_activation_set",
        "patch_all_increasing",
    ]
    published_values = main.filter(pl.col("protocol") == "paper")["published_toxicity"].to_list()
    assert published_values == [0.853, 0.025]


def test_share_of_the_reduction_by_patching() -> None:
    given_rows = [
        row("none", "paper", 0.5), row("dpo", "paper", 0.1), row("patch_toxic_neurons", "paper",
            0.4),
        row("patch_256", "paper", 0.6), row("patch_64", "paper", 0.3), row("patch_TP", "paper",
            0.2),
        row("patch_256__random_neurons", "paper", 0.2, control_of="patch_256"),
        row("none", "strict", 0.1), row("dpo", "strict", 0.1), row("patch_256", "strict", 0.0),
    ]  # fmt: skip
    frame = tables.table_3_toxic_neurons(given_rows, model=PAPERS)
    assert frame.rows() == [
        ("paper", "patch_toxic_neurons", 12, pytest.approx(0.25), 59, 0.197),
        ("paper", "patch_256", 12, pytest.approx(-0.25), 256, 0.239),
        ("paper", "patch_64", 12, pytest.approx(0.5), None, None),
        ("strict", "patch_256", 12, None, None, None),
    ]
    without_dpo = [one for one in given_rows if one.intervention != "dpo"]
    assert tables.table_3_toxic_neurons(without_dpo, model="own")["share"].null_count() == 4


def test_steering_strengths_beside_the_published_ones() -> None:
    given_rows = [
        row("steer_probe", protocol, 0.2, alpha=alpha)
        for protocol in ("paper", "strict")
        for alpha in (35.0, 30.0)
    ]
    control = row(
        "steer_probe__random_direction", "paper", 0.3, alpha=30.0, control_of="steer_probe"
    )
    frame = tables.table_12_steering(
        [*given_rows, control, row("patch_TP", "paper", 0.1)], model=PAPERS
    )
    columns = (
        "protocol",
        "alpha",
        "intervention",
        "toxicity",
        "published_toxicity",
        "published_f1",
    )
    assert frame.select(columns).rows() == [
        ("strict", 30.0, "steer_probe", 0.2, None, None),
        ("strict", 35.0, "steer_probe", 0.2, None, None),
        ("paper", 30.0, "steer_probe", 0.2, 0.31, 0.191),
        ("paper", 35.0, "steer_probe", 0.2, None, None),
        ("paper", 40.0, None, None, 0.25, 0.18),
    ]
    assert tables.table_12_steering(given_rows, model="own").height == 4


# --- tables of neurons


def test_group_tables() -> None:
    table = random_table(protocol="paper", model="GPT2-medium")
    shares = statistics.group_shares(table)
    frame = neuron_tables.table_5_group_shares(table)
    assert frame.columns == [
        "protocol",
        "tuning_free",
        "group",
        "count",
        "share",
        "published",
        "published_count",
    ]
    assert frame["group"].to_list() == [*GROUPS, "sum"] * 2
    for place, tuning_free in ((0, False), (5, True)):
        ours = shares.filter(pl.col("tuning_free") == tuning_free)
        assert frame["count"].to_list()[place : place + 5] == [*ours["count"], sum(ours["count"])]
        assert frame["share"].to_list()[place : place + 4] == ours["share"].to_list()
    assert frame["published"].to_list() == [0.069, 0.391, 0.032, 0.509, None] + [None] * 5
    assert frame["published_count"].to_list() == [None] * 4 + [57501] + [None] * 5
    roles = neuron_tables.table_4_group_roles(table)
    assert roles.select("group", "cosine", "mean_base").rows() == [
        ("TP", "+", "+"), ("TN", "+", "-"), ("AP", "-", "+"), ("AN", "-", "-")
    ]  # fmt: skip
    assert roles["reduction_share"].to_list() == shares["reduction_share"].to_list()[:4]


def test_statistics_stand_beside_the_published_ones() -> None:
    table = random_table(protocol="paper", model="gpt2-medium")
    signs = statistics.negative_shares(table)
    assert neuron_tables.table_13_negative_means(table).rows() == [
        ("paper", "base", signs["base"], 0.8728),
        ("paper", "tuned", signs["tuned"], None),
    ]
    found = statistics.correlations(table)
    assert neuron_tables.table_17_correlations(table).rows() == [
        ("paper", name, found[name].r, found[name].p, 120, *theirs)
        for name, theirs in (
            ("shift_vs_cosine", (0.004, "0.252")),
            ("shift_vs_activation", (0.263, "<1e-4")),
        )
    ]
    assert neuron_tables.table_18_reducing_share(table).rows() == [
        ("paper", 120, statistics.reducing_share(table), 0.5849)
    ]
    moved = neuron_tables.section_5_1_shifts(
        replace(table, record={**table.record, "base": {"model": "meta-llama/Llama-3.1-8B"}})
    )
    assert moved.drop("protocol", "published_percent", "published_value_cosine").equals(
        statistics.shifts(table)
    )
    assert moved["published_percent"].to_list() == [None] * 4 + [0.66]
    assert moved["published_value_cosine"].to_list() == [None] * 4 + [0.99]
    effects = neuron_tables.figure_1_opposing_effects(table)
    assert effects.drop("protocol").equals(statistics.opposing_effects(table))


NEURON_TABLES = (
    "table_5_group_shares",
    "table_13_negative_means",
    "table_17_correlations",
    "table_18_reducing_share",
)


@pytest.mark.parametrize("name", [*NEURON_TABLES, "section_5_1_shifts"])
@pytest.mark.parametrize(
    ("protocol", "model"), [("strict", "gpt2-medium"), ("paper", "own"), ("paper", None)]
)
def test_published_statistics_stand_nowhere_else(
    name: str, protocol: str, model: str | None
) -> None:
    frame: pl.DataFrame = getattr(neuron_tables, name)(random_table(protocol=protocol, model=model))
    assert frame["protocol"].unique().to_list() == [protocol]
    theirs = [column for column in frame.columns if column.startswith("published")]
    assert theirs
    assert all(frame[column].null_count() == frame.height for column in theirs)


def test_sign_conflicts_as_a_table(gpt2: LM) -> None:
    arguments = (
        tuned_of(gpt2),
        [direction(seed) for seed in range(3)],
        means("paper"),
        means("paper", seed=1),
    )
    found = statistics.sign_conflicts(gpt2, *arguments)
    shares = {"paper": vars(found)}
    assert neuron_tables.appendix_g_sign_conflicts(shares, model="gpt2-medium").rows() == [
        ("paper", "cosine", found.cosine, 0.747),
        ("paper", "projection_change", found.projection_change, 0.743),
    ]


# --- facts of a model and a run


def test_mlp_facts(named: LM) -> None:
    facts = statistics.mlp_facts(named)
    [found] = neuron_tables.table_8_mlp(facts, model=named.name).rows(named=True)
    family = named.name.removeprefix("tiny-")
    activation = {"gpt2": "gelu_new", "gemma": "gelu_pytorch_tanh", "gemma2": "gelu_pytorch_tanh"}
    activation["gemma3"] = "gelu_pytorch_tanh"
    ours = {
        "model": named.name,
        "layers": tiny.LAYERS,
        "d_model": tiny.WIDTH,
        "d_mlp": tiny.NEURONS,
    }
    ours |= {"activation": activation.get(family, "silu"), "gated": family != "gpt2"}
    assert {name: found[name] for name in ours} == ours
    assert all(found[f"published_{name}"] is None for name in ours if name != "model")


def test_mlp_facts_beside_the_published_ones(gpt2: LM) -> None:
    facts = statistics.mlp_facts(gpt2)
    [found] = neuron_tables.table_8_mlp(facts, model="gpt2-medium").rows(named=True)
    names = ("layers", "d_model", "d_mlp", "activation", "gated")
    assert [found[f"published_{name}"] for name in names] == [24, 1024, 4096, "gelu", False]


def test_hyper_parameters_beside_the_published_ones() -> None:
    settings = vars(DPOSettings(learning_rate=2e-5, optimizer="adamw"))
    frame = tables.table_9_dpo(settings)
    found = {name: (ours, theirs) for name, ours, theirs, _ in frame.rows()}
    assert found["learning_rate"] == ("2e-05", "1e-05")
    assert found["optimizer"] == ("adamw", "rmsprop")
    assert (found["batch_size"], found["accumulation"], found["epochs"]) == (
        ("4", "4"),
        ("1", "4"),
        ("1", "5"),
    )
    assert found["kl_positions"] == ("completion", None)
    assert found["max_prompt_tokens"] == (None, "64")
    # The defaults of DPOSettings are the published ones, under the same names; where one differs, a
    # note says what theirs means.
    defaults = {name: pair for name, pair in found.items() if None not in pair} | {
        "learning_rate": ("", "")
    }
    apart = [name for name, (ours, theirs) in defaults.items() if ours != theirs]
    assert {*apart} == {"optimizer", "accumulation", "epochs"}
    assert {*frame.drop_nulls("note")["setting"]} >= {
        "accumulation",
        "epochs",
        "batch_size",
        "patience",
    }
    assert found.keys() == {*settings, "eval_batch_size", "max_new_tokens", "max_prompt_tokens"} - {
        "kl_weight"
    }
    assert tables.table_10_kl_weight(settings, model="google/gemma-2-2b").rows() == [
        ("google/gemma-2-2b", 0.05, 0.05)
    ]


def test_probe_facts_beside_the_published_ones() -> None:
    facts = {one: {"accuracy": 0.9, "auc": 0.95, "alpha": 12.5, "train": 90} for one in PROTOCOLS}
    del facts["paper"]["alpha"]
    assert tables.table_11_probe(facts, model="gpt2-medium").rows() == [
        ("strict", 0.9, 0.95, 12.5, None, None),
        ("paper", 0.9, 0.95, None, 0.956, 30.0),
    ]


def test_seed_words_beside_the_published_ones() -> None:
    words = published.seed_words()
    frame = tables.table_7_seed_words()
    assert (
        frame["word"].to_list()
        == frame["published"].to_list()
        == words["toxic"] + words["non_toxic"]
    )
    own = tables.table_7_seed_words(["x"] * 6, ["y"])
    assert own["word"].to_list() == ["x"] * 6 + ["y"] + [None] * 4
    assert own["published"].to_list() == [*words["toxic"], None, *words["non_toxic"]]


# --- published figures and files


def test_published_figures_are_there_for_all_four_models() -> None:
    for model in published.MODELS:
        for quantity in (
            "groups",
            "toxic_neurons",
            "mlp",
            "kl_weight",
            "steering",
            "correlations",
            "shifts",
        ):
            assert published.figure(model, quantity)
        shares = published.figure(model, "groups") or {}
        assert sum(shares[name] for name in GROUPS) == pytest.approx(1, abs=0.002)
        assert published.figure(model, "steering")[0]["alpha"] == published.figure(
            model, "steering_alpha"
        )
        # Table 12's first strength is table 2's row.
        alpha = published.figure(model, "steering_alpha")
        toxicity = (published.row(model, "steer_probe", alpha=alpha) or {})["toxicity"]
        assert published.figure(model, "steering")[0]["toxicity"] == toxicity
        assert published.row(model, "steer_probe", alpha=2 * alpha) is None
    assert published.figure("own", "groups") is published.figure(None, "groups") is None
    assert published.figure("google/gemma-2-2b", "sign_conflicts") is None
    assert published.row("gpt2-medium", "edit_probe_scale") is None


def test_published_shares_of_toxic_neurons_fit_the_published_toxicities() -> None:
    for model in ("gpt2-medium", "mistralai/mistral-7b-v0.1"):
        given_rows = [
            row(name, "paper", (published.row(model, name) or {})["toxicity"])
            for name in ("none", "dpo", "patch_toxic_neurons", "patch_256")
        ]
        for found in tables.table_3_toxic_neurons(given_rows, model=model).iter_rows(named=True):
            assert found["share"] == pytest.approx(found["published_share"], abs=0.003)


def test_csv_files_read_back(tmp_path: Path, rows: list[Row]) -> None:
    frames = {
        "table-2-interventions": tables.table_2_interventions(rows, model=PAPERS),
        "table-1-directions": pl.DataFrame(
            {"token": ["\n", ' "a", b', ""], "logit": [1.0, 0.1 + 0.2, None]}
        ),
    }
    write_csv(frames, tmp_path / "tables")
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        f"{name}.csv" for name in frames
    }
    with (tmp_path / "tables/table-1-directions.csv").open(newline="", encoding="utf-8") as file:
        assert [*csv.reader(file)] == [
            ["token", "logit"],
            ["\n", "1.0"],
            [' "a", b', repr(0.1 + 0.2)],
            ["", ""],
        ]
    results = pl.read_csv(tmp_path / "tables/table-2-interventions.csv", infer_schema_length=None)
    assert results["toxicity"].to_list() == frames["table-2-interventions"]["toxicity"].to_list()
    assert {0.545, 0.203} <= {*results["published_toxicity"]}
    with pytest.raises(DialdownError, match="cannot be written"):
        write_csv(frames, tmp_path / "tables/table-1-directions.csv")
