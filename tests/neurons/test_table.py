"""The neuron table against plain loops, with each model's own value vectors (METHOD §3)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dialdown as dd
from dialdown import DialdownError
from dialdown.models import LM
from dialdown.neurons import Direction, NeuronTable
from helpers import tiny
from helpers.tables import (
    CHANGE,
    COSINE,
    MEAN,
    SHAPE,
    direction,
    means,
    members,
    one_layer,
    tuned_of,
    value_vector,
)


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_every_column_is_its_formula(named: LM, protocol: Any) -> None:
    tuned = tuned_of(named)
    base, after, w = means(protocol), means(protocol, seed=1), direction()
    table = dd.compare(named, tuned, w, base, after)
    unit = w.vector / np.sqrt((w.vector**2).sum())
    rows = table.to_polars().to_dicts()
    assert len(rows) == SHAPE[0] * SHAPE[1]
    for number, row in enumerate(rows):
        layer, neuron = divmod(number, tiny.NEURONS)
        assert (row["layer"], row["neuron"]) == (layer, neuron)
        v, vt = (
            value_vector(lm, layer, neuron, protocol)
            for lm in (named, replace(tuned, name=named.name))
        )
        m, mt = base.means[layer, neuron], after.means[layer, neuron]
        expected = {
            "mean_base": m,
            "mean_tuned": mt,
            "cosine": v @ unit / np.linalg.norm(v),
            "projection_base": m * (v @ unit),
            "projection_tuned": mt * (vt @ unit),
            "projection_change": mt * (vt @ unit) - m * (v @ unit),
            "value_cosine": v @ vt / np.linalg.norm(v) / np.linalg.norm(vt),
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, abs=1e-4), name
        group = ("T" if expected["cosine"] > 0 else "A") + ("P" if m > 0 else "N")
        assert row["group"] == (group if expected["projection_change"] < 0 else None)

    alone = dd.neuron_table(named, w, base)
    assert not alone.compared
    for name in ("cosine", "mean_base", "projection_base"):
        assert np.array_equal(alone.grid(name), table.grid(name))
    assert set(alone.to_polars()["group"]) == {"TP", "TN", "AP", "AN"}


def test_the_norm_after_gemmas_mlp_counts_under_strict_only(gemma2: LM, llama: LM) -> None:
    for lm, differ in ((gemma2, True), (llama, False)):
        strict, paper = (
            dd.neuron_table(lm, direction(), means(protocol)) for protocol in ("strict", "paper")
        )
        assert np.allclose(strict.grid("cosine"), paper.grid("cosine")) != differ
        assert np.allclose(strict.grid("projection_base"), paper.grid("projection_base")) != differ
        assert (strict.protocol, paper.protocol) == ("strict", "paper")


def test_groups_by_the_signs_of_cosine_and_mean_and_zeros_in_none() -> None:
    table = one_layer(COSINE, MEAN, CHANGE)
    assert {name: members(mask) for name, mask in table.groups().items()} == {
        "TP": [0],
        "TN": [1],
        "AP": [2],
        "AN": [3],
    }
    free = {"TP": [0, 7], "TN": [1], "AP": [2], "AN": [3, 8]}
    assert {name: members(mask) for name, mask in table.groups(changed=False).items()} == free
    untuned = one_layer(COSINE, MEAN)
    assert {name: members(mask) for name, mask in untuned.groups().items()} == free
    with pytest.raises(DialdownError, match=r"no column 'projection_change'.*dd\.compare"):
        untuned.groups(changed=True)
    # A negative zero is a zero.
    assert not any(mask.any() for mask in one_layer([-0.0, 1.0], [1.0, -0.0]).groups().values())


def test_neurons_by_name() -> None:
    table = one_layer(COSINE, MEAN, CHANGE)
    expected = {
        "TP": [0],
        "TP+AN": [0, 3],
        "TP+AN+TN": [0, 1, 3],
        "four_groups": [0, 1, 2, 3],
        "TP+TN+AP+AN": [0, 1, 2, 3],
        "increasing": [8],
        "toxic_2": [0, 1],
    }
    for which, neurons in expected.items():
        assert members(table.select(which)) == neurons, which


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("TX", "Unknown group 'TX'.*did you mean 'T[PN]'"),
        ("TP+", "Unknown group ''"),
        ("TP+XY", "Unknown group 'XY' in 'TP\\+XY'"),
        ("four_group", "did you mean 'four_groups'"),
        ("incresing", "did you mean 'increasing'"),
        ("toxic_0", "0 most aligned neurons"),
        ("toxic_10", "10 most aligned neurons.*model has 9"),
        ("toxic_-1", "did you mean 'toxic_256'"),
    ],
)
def test_unknown_neurons_name_the_nearest(which: str, message: str) -> None:
    with pytest.raises(DialdownError, match=message):
        one_layer(COSINE, MEAN, CHANGE).select(which)


def test_increasing_needs_a_tuned_model() -> None:
    with pytest.raises(DialdownError, match=r"dd\.compare"):
        one_layer(COSINE, MEAN).select("increasing")


def test_most_aligned_is_the_highest_signed_cosine_over_all_layers(llama: LM) -> None:
    table = dd.neuron_table(llama, direction(), means())
    mask, cosine = table.most_aligned(10), table.grid("cosine")
    assert mask.sum() == 10
    assert cosine[mask].min() > cosine[~mask].max()
    assert mask.any(1).sum() > 1


def test_a_pruned_neuron_is_in_no_group(llama: LM) -> None:
    pruned = llama.twin()
    pruned.view.layers[1].columns[:, 4] = 0
    table = dd.compare(llama, pruned, direction(), means(), means(seed=1))
    assert table.grid("value_cosine")[1, 4] == 0
    base = dd.neuron_table(pruned, direction(), means())
    assert base.grid("cosine")[1, 4] == 0
    assert not any(mask[1, 4] for mask in base.groups().values())
    assert np.isfinite(base.grid("projection_base")).all()


def test_an_unknown_column_names_the_nearest(llama: LM) -> None:
    with pytest.raises(DialdownError, match="did you mean 'cosine'"):
        dd.neuron_table(llama, direction(), means()).grid("cosin")


def test_what_does_not_fit_together_is_refused(llama: LM) -> None:
    wide = tiny.lm("llama", intermediate_size=tiny.NEURONS + 1)
    with pytest.raises(DialdownError, match=r"means have shape \(3, 24\).*3 layers of 25"):
        dd.neuron_table(wide, direction(), means())
    with pytest.raises(DialdownError, match="n_neurons 25 where tiny-llama has 24"):
        dd.compare(llama, wide, direction(), means(), means())
    with pytest.raises(DialdownError, match="two protocols, strict and paper"):
        dd.compare(llama, llama, direction(), means(), means("paper"))
    with pytest.raises(DialdownError, match="direction has 3 dimensions"):
        dd.neuron_table(llama, Direction("probe", np.ones(3), "residual"), means())


def test_parquet(tmp_path: Path, llama: LM) -> None:
    table = dd.compare(llama, tuned_of(llama), direction(), means(), means(seed=1))
    path = tmp_path / "neurons.parquet"
    table.to_parquet(path)
    again = NeuronTable.from_parquet(path)
    assert again.to_polars().equals(table.to_polars(), null_equal=True)
    assert again.to_polars().schema == table.to_polars().schema
    assert (again.shape, again.record, again.protocol) == (SHAPE, table.record, "strict")
    assert again.record["direction"] == {"name": "probe", "site": "residual", "seed": 0}
    assert (again.record["count_base"], again.record["base"]["model"]) == (10, "tiny-llama")
    # Others read it without this package.
    assert {"layer", "neuron", "cosine", "mean_base", "mean_tuned", "projection_base",
        "projection_tuned",
            "projection_change", "group",
            "value_cosine"} == set(pq.read_table(path).column_names)  # fmt: skip


def test_a_path_is_no_pattern(tmp_path: Path, llama: LM) -> None:
    table = dd.neuron_table(llama, direction(), means())
    path = tmp_path / "a [red] run * ?" / "neurons.parquet"
    table.to_parquet(path)
    assert NeuronTable.from_parquet(path).record == table.record


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "foreign":
        pq.write_table(pa.table({"a": [1]}), path)
    elif how == "newer":
        header = pl.read_parquet_metadata(path)["dialdown"].replace('"schema": ', '"schema": 9')
        pl.read_parquet(path).write_parquet(path, metadata={"dialdown": header})
    else:
        path.write_bytes(
            {
                "empty": b"",
                "text": b"hello",
                "half": whole[: len(whole) // 2],
                "page": b"PAR1" + b"\xff" * 999 + whole[1003:],
            }[how]
        )


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "does not exist"),
        ("empty", "damaged"),
        ("text", "damaged"),
        ("half", "damaged"),
        ("page", "damaged"),
        ("foreign", "no dialdown neuron table"),
        ("newer", "schema"),
    ],
)
def test_a_file_that_is_no_table(tmp_path: Path, llama: LM, how: str, message: str) -> None:
    path = tmp_path / "neurons.parquet"
    dd.neuron_table(llama, direction(), means()).to_parquet(path)
    damage(path, how)
    with pytest.raises(DialdownError, match=message):
        NeuronTable.from_parquet(path)
