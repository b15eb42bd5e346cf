"""The paper's tables of neurons, groups and directions, on tiny models and invented columns."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import dialdown as dd
from dialdown.models.lm import LM
from dialdown.neurons import statistics, subspace
from dialdown.neurons.logit_lens import direction_tokens, value_vector_tokens
from dialdown.neurons.table import GROUPS
from dialdown.report import neuron_tables
from dialdown.report.page import write_report
from dialdown.study import published
from helpers import tiny
from helpers.fabricated_run import write_run
from helpers.tables import compared, direction, random_table, value_vector


@pytest.mark.parametrize("protocol", ["strict", "paper"])
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
            along.name,
            sign,
            [token for token, _ in dd.logit_lens(llama, sign * along.vector, k=2)],
        )
        for along, protocol in ((probe, "paper"), (contrast, None))
        for sign in (1, -1)
    ]
    directions = subspace.svd_subspace(llama, probe, neurons=20)
    frame = direction_tokens(llama, directions, signs=(1,), k=2)
    assert frame["direction"].to_list() == [f"svd_{number}" for number in (1, 1, 2, 2, 3, 3)]
    assert frame["token"][0] == dd.logit_lens(llama, directions[0].vector, k=1)[0][0]


def test_group_tables() -> None:
    table = random_table(protocol="paper", model="GPT2-medium")
    shares = statistics.group_shares(table)
    frame = neuron_tables.table_5_group_shares(table)
    assert frame.columns[:5] == ["protocol", "tuning_free", "group", "count", "share"]
    assert frame["group"].to_list() == [*GROUPS, "sum"] * 2
    for place, tuning_free in ((0, False), (5, True)):
        rows = shares.filter(pl.col("tuning_free") == tuning_free)
        assert frame["count"].to_list()[place : place + 5] == [*rows["count"], sum(rows["count"])]
        assert frame["share"].to_list()[place : place + 4] == rows["share"].to_list()
    stated = [frame[f"published_gpt2-medium_{kind}"].to_list() for kind in ("share", "count")]
    assert stated[0] == [0.069, 0.391, 0.032, 0.509, None] + [None] * 5
    assert stated[1] == [None] * 4 + [57501] + [None] * 5
    roles = neuron_tables.table_4_group_roles(table)
    assert roles.select("group", "cosine", "mean_base").rows() == [
        ("TP", "+", "+"), ("TN", "+", "-"), ("AP", "-", "+"), ("AN", "-", "-")
    ]  # fmt: skip
    assert roles["reduction_share"].to_list() == shares["reduction_share"].to_list()[:4]


def test_statistics_stand_beside_the_published_ones() -> None:
    table = random_table(protocol="paper", model="gpt2-medium")
    signs = statistics.negative_shares(table)
    assert neuron_tables.table_13_negative_means(table).rows() == [
        ("paper", "base", signs["base"], 0.8728, 0.4996, 0.4994, 0.5003),
        ("paper", "tuned", signs["tuned"], None, None, None, None),
    ]
    expected = statistics.correlations(table)
    correlations = neuron_tables.table_17_correlations(table)
    stated = ("published_gpt2-medium_r", "published_gpt2-medium_p")
    assert correlations.select("protocol", "pair", "r", "p", "n", *stated).rows() == [
        ("paper", name, expected[name]["r"], expected[name]["p"], 120, *figures)
        for name, figures in (
            ("shift_vs_cosine", (0.004, "0.252")),
            ("shift_vs_activation", (0.263, "<1e-4")),
        )
    ]
    assert neuron_tables.table_18_reducing_share(table).rows() == [
        ("paper", 120, statistics.reducing_share(table), 0.5849, 0.5301, 0.5175, 0.5198)
    ]
    moved = neuron_tables.section_5_1_shifts(table)
    assert moved.select(statistics.shifts(table).columns).equals(statistics.shifts(table))
    assert moved["published_llama-3.1-8b_percent"].to_list() == [None] * 4 + [0.66]
    assert moved["published_llama-3.1-8b_value_cosine"].to_list() == [None] * 4 + [0.99]
    effects = neuron_tables.figure_1_opposing_effects(table)
    assert effects.drop("protocol").equals(statistics.opposing_effects(table))


NEURON_TABLES = (
    "table_5_group_shares",
    "table_13_negative_means",
    "table_17_correlations",
    "table_18_reducing_share",
)


@pytest.mark.parametrize("name", [*NEURON_TABLES, "section_5_1_shifts"])
@pytest.mark.parametrize(("protocol", "there"), [("strict", False), ("paper", True)])
def test_published_statistics_stand_beside_paper_alone(
    name: str, protocol: str, there: bool
) -> None:
    # They do so whichever model was studied.
    frame: pl.DataFrame = getattr(neuron_tables, name)(random_table(protocol=protocol, model="own"))
    assert frame["protocol"].unique().to_list() == [protocol]
    for model in published.NAMES:
        stated = [column for column in frame.columns if column.startswith(f"published_{model}")]
        assert stated
        assert any(frame[column].null_count() < frame.height for column in stated) == there


def test_mlp_facts(named: LM) -> None:
    frame = neuron_tables.table_8_mlp(subspace.mlp_facts(named))
    family = named.name.removeprefix("tiny-")
    activation = {"gpt2": "gelu_new", "gemma": "gelu_pytorch_tanh", "gemma2": "gelu_pytorch_tanh"}
    activation["gemma3"] = "gelu_pytorch_tanh"
    facts = {"layers": tiny.LAYERS, "d_model": tiny.WIDTH, "d_mlp": tiny.NEURONS}
    facts |= {"activation": activation.get(family, "silu"), "gated": family != "gpt2"}
    assert dict(frame.select("fact", "value").iter_rows()) == {
        name: str(fact) for name, fact in facts.items()
    }
    stated = frame["published_gpt2-medium"].to_list()
    assert stated == ["24", "1024", "4096", "gelu", "False"]


def test_the_bars_of_figure_2a_are_in_the_tables_that_it_links(tmp_path: Path) -> None:
    run = write_run(tmp_path, protocols=("strict",), tuned="someone/tuned")
    text = write_report(run).read_text(encoding="utf-8")
    [figure] = re.findall(r'<figure id="figure-2a[^"]*strict".*?</figure>', text, flags=re.DOTALL)
    links = dict(re.findall(r'<a href="(tables/[^"]*)">([^<]*)</a>', figure))
    assert [*links.values()] == ["CSV (table 4)", "CSV (table 5)"]
    roles, shares = (pl.read_csv(tmp_path / link).filter(protocol="strict") for link in links)
    bars = {f"{share:.1%}" for share in roles["reduction_share"]}
    drawn = {*re.findall(r">([^<>]*)</text>", figure)}
    assert len(bars) == 4
    assert bars <= drawn
    counted = shares.filter(~pl.col("tuning_free") & (pl.col("group") != "sum"))
    assert {f"{name} ({n})" for name, n in counted.select("group", "count").iter_rows()} <= drawn
