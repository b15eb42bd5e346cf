"""Settings from presets, files, variables and flags, and which are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dialdown import DialdownError
from dialdown.study import load_config
from dialdown.study.sources import parse_assignments
from dialdown.training import PairSettings


def test_the_layers_of_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("seed = 1\n[dpo]\nbeta = 0.2\nlearning_rate = 3e-5\n[probe]\ncount = 77\n")
    monkeypatch.setenv("DIALDOWN_DPO__BETA", "0.3")
    monkeypatch.setenv("DIALDOWN_SEED", "2")
    config = load_config(preset="demo", file=file, flags={"seed": 3})
    assert (config.seed, config.dpo.beta, config.dpo.learning_rate, config.probe.count) == (
        3,
        0.3,
        3e-5,
        77,
    )
    assert config.pairs.count == load_config(preset="demo").pairs.count
    monkeypatch.setenv("DIALDOWN_DPO__BETTA", "0.3")
    with pytest.raises(DialdownError, match="beta"):
        load_config()


@pytest.mark.parametrize(
    ("name", "kl_weight"),
    [("gpt2-medium", 0.02), ("llama-3.1-8b", 0.1), ("gemma-2-2b", 0.05), ("mistral-7b", 0.05)],
)
def test_the_papers_configs_have_the_published_hyper_parameters(
    name: str, kl_weight: float
) -> None:
    """Tables 9 and 10 of the paper."""
    config = load_config(preset=name)
    dpo = config.dpo
    assert dpo.kl_weight == kl_weight
    assert (dpo.beta, dpo.optimizer, dpo.learning_rate, dpo.warmup_steps) == (
        0.1,
        "rmsprop",
        1e-5,
        150,
    )
    # What the authors' program does: 4 pairs an update, a validation every 100 pairs, 3,000 pairs
    # of patience, one pass.
    pairs_an_update = dpo.batch_size * dpo.accumulation
    assert (dpo.batch_size, pairs_an_update, dpo.epochs, dpo.max_grad_norm) == (4, 4, 1, 10.0)
    assert (dpo.eval_every * pairs_an_update, dpo.patience * dpo.eval_every * pairs_an_update) == (
        100,
        3000,
    )
    assert (dpo.max_tokens, dpo.eval_pairs, dpo.kl_positions) == (256, 64, "all")
    assert load_config(preset="full").dpo == replace(dpo, kl_weight=0.05, kl_positions="completion")
    edits = config.interventions
    assert (edits.ordering, edits.drop_top) == ("notebook", 0.2 if name == "gpt2-medium" else 0.0)
    assert (config.evaluation.count, config.evaluation.pairs_count, config.evaluation.window) == (
        1199,
        2000,
        1024,
    )
    assert config.pairs.count == 24576


def test_a_list_may_come_from_the_environment_with_or_without_brackets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DIALDOWN_PROTOCOLS", "strict")
    monkeypatch.setenv("DIALDOWN_PROBE__POSITIVE", '["the", "a, b"]')
    monkeypatch.setenv("DIALDOWN_FRONT__GAINS", "0.5, 2")
    monkeypatch.setenv("dialdown_seed", "7")
    config = load_config()
    assert (config.protocols, config.probe.positive) == (("strict",), ("the", "a, b"))
    assert (config.front.gains, config.seed) == ((0.5, 2.0), 7)


@pytest.mark.parametrize("revision", ["1234567", "0123456", "1e10", "2024-01-01", "true"])
def test_a_text_stays_a_text_whatever_it_looks_like(revision: str) -> None:
    assert load_config(flags=parse_assignments([f"revision={revision}"])).revision == revision


def test_a_flag_may_be_quoted_and_hold_an_equals_sign() -> None:
    assert parse_assignments(['concept="a b"', "token_judge=a=b.txt"]) == {
        "concept": "a b",
        "token_judge": "a=b.txt",
    }


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("DIALDOWN_DPO_BETA", "dpo.beta"),
        ("DIALDOWN_DPO__BETTA", "dpo.beta"),
        ("dialdown_dpo__betta", "dpo.beta"),
        ("DIALDOWN_DOP__BETA", "dpo"),
        ("DIALDOWN__DPO__BETA", "dpo"),
        ("DIALDOWN_LEARNING_RATE", "dpo.learning_rate"),
    ],
)
def test_a_misspelt_variable_is_never_ignored(
    name: str, suggested: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(
        DialdownError, match=f"environment variable {name}: did you mean '{suggested}"
    ):
        load_config()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_of_settings_may_begin_with_a_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "mine.toml").write_text("seed = 3\r\n[dpo]\r\nbeta = 0.2\r\n", encoding=encoding)
    config = load_config(file=tmp_path / "mine.toml")
    assert (config.seed, config.dpo.beta) == (3, 0.2)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "key", ["pairs.margin", "dpo.beta", "detox.max_kl", "front.gains", "interventions.alpha"]
)
def test_no_number_is_infinite_or_none(key: str, number: str) -> None:
    with pytest.raises(DialdownError):
        load_config(flags={key: number})
    if key == "pairs.margin":
        with pytest.raises(DialdownError, match="margin"):
            PairSettings(margin=float(number))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["dpo=1", "dpo.beta=2"], "dpo was given the value '1'"),
        (["dpo.beta=2", "dpo=1"], "section"),
        (["concept=a\nb"], "concept = 'a\\nb'"),
        (["concept=\ud83d"], "half of a character"),
        (["concept= "], "concept is blank"),
        (["protocols=strict,strict"], "names 'strict' twice"),
        (["seed=4294967296"], "out of range"),
        (["evaluation.batch_size=1e30"], "batch_size"),
    ],
)
def test_a_setting_that_cannot_be_is_named(flags: list[str], words: str) -> None:
    with pytest.raises(DialdownError) as error:
        load_config(flags=parse_assignments(flags))
    assert words in str(error.value)


def test_a_suggestion_ends_with_one_mark() -> None:
    for flags, preset in (({"sed": 1}, "demo"), ({"zzz": 1}, "demo"), ({}, "demmo")):
        values: dict[str, Any] = {"preset": preset, "flags": flags}
        with pytest.raises(DialdownError) as error:
            load_config(**values)
        assert str(error.value)[-1] in "?."
        assert str(error.value)[-2] not in "?."
