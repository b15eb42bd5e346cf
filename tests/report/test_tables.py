"""The paper's tables: their layout on tiny models and the invented run."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import dialdown as dd
from dialdown.data.csv_tables import write_csv
from dialdown.errors import DialdownError
from dialdown.evaluation.bootstrap import Estimate
from dialdown.evaluation.row import Row
from dialdown.files import read_json
from dialdown.neurons.activations import NeuronMeans
from dialdown.neurons.directions import NON_TOXIC_WORDS, TOXIC_WORDS
from dialdown.report import tables
from dialdown.study import published
from dialdown.study.config import load_config
from dialdown.study.plan import Tables, plan
from dialdown.training.settings import DPOSettings
from helpers import tiny
from helpers.fabricated_run import write_run
from helpers.tables import direction, tuned_of

PROTOCOLS = ("strict", "paper")
METRICS = ("toxicity", "log_ppl", "f1")


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


def test_interventions_have_the_rows_and_numbers_of_the_results(rows: list[Row]) -> None:
    frame = tables.table_2_interventions(rows)
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
    for line, given_row in zip(frame.iter_rows(named=True), rows, strict=True):
        for metric in ("toxicity", "log_ppl", "f1", "kl", "repetition", "degenerate"):
            mean = given_row.metrics[metric]
            parts = [line[metric], *(line[f"{metric}_{part}"] for part in ("low", "high", "n"))]
            assert parts == [mean.mean, mean.low, mean.high, mean.n]


def test_published_interventions_stand_beside_paper_rows_of_the_same_name(rows: list[Row]) -> None:
    frame = tables.table_2_interventions(rows)
    for model in published.NAMES:
        columns = [f"published_{model}_{metric}" for metric in METRICS]
        stated = frame.filter(pl.any_horizontal(pl.col(columns).is_not_null()))
        assert {*stated["protocol"]} == {"paper"}
        assert stated["control_of"].null_count() == stated.height
        # Edits by shift and scale have no published figure.
        assert "edit_probe_scale" not in {*stated["intervention"]}
        for name in ("none", "dpo", "steer_probe"):
            [values] = stated.filter(pl.col("intervention") == name).select(columns).rows()
            assert values == tuple((published.row(model, name) or {}).values())
    values = {row["intervention"]: row for row in frame.iter_rows(named=True)}
    # α = .5 and β = .05, the third of the published strengths.
    assert values["edit_probe_set"]["published_gpt2-medium_toxicity"] == 0.203


@pytest.mark.parametrize("model", published.NAMES)
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
    rows = [
        row(
            planned_row.intervention.name,
            "paper",
            0.1,
            **{
                fact: getattr(planned_row.intervention, fact)
                for fact in ("family", "strength", "control", "control_of", "alpha", "beta")
            },
        )
        for planned_row in planned
    ]
    assert len({planned_row.intervention for planned_row in rows}) == len(rows)
    frames = [tables.table_2_interventions(rows), tables.table_19_more_interventions(rows)]
    columns = [f"published_{model}_{metric}" for metric in METRICS]
    stated = (
        pl.concat([frame.select("intervention", *columns) for frame in frames])
        .unique()
        .drop_nulls(columns)
    )
    figures = read_json(Path(published.__file__).with_name("published.json"))
    expected = [tuple(values[model]) for values in figures["rows"].values()]
    assert Counter(stated.select(columns).iter_rows()) == Counter(expected)
    assert stated["intervention"].null_count() == 0


def test_a_metric_that_was_not_measured_is_null() -> None:
    frame = tables.table_2_interventions([row("none", "paper", None)])
    assert frame["toxicity"].to_list() == frame["kl_n"].to_list() == [None]


def test_further_interventions_are_the_increasing_neurons_and_named_orderings(
    rows: list[Row],
) -> None:
    activation = row("edit_probe_activation_set", "paper", 0.2, alpha=0.8, beta=0.05)
    control = row(
        "edit_probe_activation_set__beta_zero", "paper", 0.2, control_of="edit_probe_activation_set"
    )
    frame = tables.table_19_more_interventions([*rows, activation, control])
    main = frame.filter(pl.col("control_of").is_null())
    assert main["intervention"].to_list() == ["patch_all_increasing"] * 2 + [
        "edit_probe_activation_set"
    ]
    assert frame["control_of"].unique().sort().to_list() == [
        None,
        "edit_probe_activation_set",
        "patch_all_increasing",
    ]
    published_values = main.filter(pl.col("protocol") == "paper")["published_gpt2-medium_toxicity"]
    assert published_values.to_list() == [0.853, 0.025]


def test_share_of_the_reduction_by_patching() -> None:
    given_rows = [
        row("none", "paper", 0.5), row("dpo", "paper", 0.1), row("patch_toxic_neurons", "paper",
            0.4),
        row("patch_256", "paper", 0.6), row("patch_64", "paper", 0.3), row("patch_TP", "paper",
            0.2),
        row("patch_256__random_neurons", "paper", 0.2, control_of="patch_256"),
        row("none", "strict", 0.1), row("dpo", "strict", 0.1), row("patch_256", "strict", 0.0),
    ]  # fmt: skip
    frame = tables.table_3_toxic_neurons(given_rows)
    stated = ("published_gpt2-medium_neurons", "published_gpt2-medium_share")
    assert frame.select("protocol", "intervention", "neurons", "share", *stated).rows() == [
        ("paper", "patch_toxic_neurons", 12, pytest.approx(0.25), 59, 0.197),
        ("paper", "patch_256", 12, pytest.approx(-0.25), 256, 0.239),
        ("paper", "patch_64", 12, pytest.approx(0.5), None, None),
        ("strict", "patch_256", 12, None, None, None),
    ]
    without_dpo = [given_row for given_row in given_rows if given_row.intervention != "dpo"]
    assert tables.table_3_toxic_neurons(without_dpo)["share"].null_count() == 4


def test_steering_strengths_beside_the_published_ones() -> None:
    given_rows = [
        row("steer_probe", protocol, 0.2, alpha=alpha)
        for protocol in ("paper", "strict")
        for alpha in (35.0, 30.0)
    ]
    control = row(
        "steer_probe__random_direction", "paper", 0.3, alpha=30.0, control_of="steer_probe"
    )
    frame = tables.table_12_steering([*given_rows, control, row("patch_TP", "paper", 0.1)])
    # The unit of α is the probe's own, so a published one has a row of its own.
    stated = [f"published_gpt2-medium_{name}" for name in ("alpha", *METRICS)]
    assert frame.select("protocol", "alpha", "intervention", "toxicity", *stated).rows() == [
        ("strict", 30.0, "steer_probe", 0.2, None, None, None, None),
        ("strict", 35.0, "steer_probe", 0.2, None, None, None, None),
        ("paper", 30.0, "steer_probe", 0.2, None, None, None, None),
        ("paper", 35.0, "steer_probe", 0.2, None, None, None, None),
        ("paper", None, None, None, 30.0, 0.31, 3.19, 0.191),
        ("paper", None, None, None, 40.0, 0.25, 3.34, 0.18),
    ]
    assert tables.table_12_steering([]).is_empty()


def test_hyper_parameters_beside_the_published_ones() -> None:
    settings = vars(DPOSettings(learning_rate=2e-5, optimizer="adamw"))
    frame = tables.table_9_dpo(settings)
    values = {name: (used, stated) for name, used, stated, _ in frame.rows()}
    assert values["learning_rate"] == ("2e-05", "1e-05")
    assert values["optimizer"] == ("adamw", "rmsprop")
    assert (values["batch_size"], values["accumulation"], values["epochs"]) == (
        ("4", "4"),
        ("1", "4"),
        ("1", "5"),
    )
    assert values["kl_positions"] == ("completion", None)
    assert values["max_prompt_tokens"] == (None, "64")
    # The defaults of DPOSettings are the published ones, under the same names; where one differs, a
    # note says what the published value means.
    defaults = {name: pair for name, pair in values.items() if None not in pair} | {
        "learning_rate": ("", "")
    }
    apart = [name for name, (used, stated) in defaults.items() if used != stated]
    assert {*apart} == {"optimizer", "accumulation", "epochs"}
    assert {*frame.drop_nulls("note")["setting"]} >= {
        "accumulation",
        "epochs",
        "batch_size",
        "patience",
    }
    assert values.keys() == {
        *settings,
        "eval_batch_size",
        "max_new_tokens",
        "max_prompt_tokens",
    } - {"kl_weight"}
    assert tables.table_10_kl_weight(settings).rows() == [("γ", 0.05, 0.02, 0.1, 0.05, 0.05)]


def test_probe_facts_beside_the_published_ones() -> None:
    facts = {
        protocol: {"accuracy": 0.9, "auc": 0.95, "alpha": 12.5, "train": 90}
        for protocol in PROTOCOLS
    }
    del facts["paper"]["alpha"]
    frame = tables.table_11_probe(facts)
    stated = ("published_gpt2-medium_accuracy", "published_gpt2-medium_alpha")
    assert frame.select("protocol", "accuracy", "auc", "alpha", *stated).rows() == [
        ("strict", 0.9, 0.95, 12.5, None, None),
        ("paper", 0.9, 0.95, None, 0.956, 30.0),
    ]


def test_seed_words_beside_the_published_ones() -> None:
    words = published.figures()["seed_words"]
    frame = tables.table_7_seed_words(TOXIC_WORDS, NON_TOXIC_WORDS)
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
        "table-2-interventions": tables.table_2_interventions(rows),
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
    assert {0.545, 0.203} <= {*results["published_gpt2-medium_toxicity"]}
    with pytest.raises(DialdownError, match="cannot be written"):
        write_csv(frames, tmp_path / "tables/table-1-directions.csv")


def test_published_shares_of_toxic_neurons_fit_the_published_toxicities() -> None:
    for model in ("gpt2-medium", "mistral-7b"):
        given_rows = [
            row(name, "paper", (published.row(model, name) or {})["toxicity"])
            for name in ("none", "dpo", "patch_toxic_neurons", "patch_256")
        ]
        frame = tables.table_3_toxic_neurons(given_rows)
        stated = frame[f"published_{model}_share"].to_list()
        assert frame["share"].to_list() == pytest.approx(stated, abs=0.003)
