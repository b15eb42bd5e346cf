"""The paper's tables: their layout on tiny models and the invented run."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import dialdown as dd
from dialdown.data.csv_tables import write_csv
from dialdown.errors import DialdownError
from dialdown.evaluation.bootstrap import Estimate
from dialdown.evaluation.row import Row
from dialdown.files import read_json
from dialdown.models.lm import LM
from dialdown.neurons import statistics
from dialdown.neurons.activations import NeuronMeans
from dialdown.neurons.logit_lens import direction_tokens, value_vector_tokens
from dialdown.neurons.table import GROUPS
from dialdown.report import neuron_tables, tables
from dialdown.study import published
from dialdown.study.config import load_config
from dialdown.study.plan import Tables, plan
from dialdown.training.settings import DPOSettings
from helpers import tiny
from helpers.fabricated_run import write_run
from helpers.tables import compared, direction, random_table, tuned_of, value_vector

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


def test_published_shares_of_toxic_neurons_fit_the_published_toxicities() -> None:
    for model in ("gpt2-medium", "mistralai/mistral-7b-v0.1"):
        given_rows = [
            row(name, "paper", (published.row(model, name) or {})["toxicity"])
            for name in ("none", "dpo", "patch_toxic_neurons", "patch_256")
        ]
        for found in tables.table_3_toxic_neurons(given_rows, model=model).iter_rows(named=True):
            assert found["share"] == pytest.approx(found["published_share"], abs=0.003)
