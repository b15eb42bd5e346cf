"""Training that was stopped, damaged or finished before, on tiny random models."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from dialdown.progress import progress_to
from dialdown.training import checkpoints, train_dpo
from dialdown.training.dpo import all_weights, tune
from helpers.dpo_runs import PAIRS, QUICK, of, same, story, tiny, weights


def test_snapshots_are_the_models_along_the_way(tokenizer, tmp_path):
    model = tiny("llama")
    train_dpo(of(model, tokenizer), PAIRS, replace(QUICK, snapshots=2), tmp_path / "tuned")
    assert {path.name for path in (tmp_path / "tuned-steps").iterdir()} == {"2", "4"}
    train_dpo(of(model, tokenizer), PAIRS, replace(QUICK, max_steps=2), tmp_path / "short")
    assert same(weights(tmp_path / "tuned-steps" / "2"), weights(tmp_path / "short"))
    assert not same(weights(tmp_path / "tuned-steps" / "4"), weights(tmp_path / "short"))
    AutoModelForCausalLM.from_pretrained(tmp_path / "tuned-steps" / "4")


def test_a_finished_run_returns_its_log_and_other_settings_replace_it(tokenizer, tmp_path):
    model, out = tiny("llama"), tmp_path / "tuned"
    log = train_dpo(of(model, tokenizer), PAIRS, QUICK, out)
    written = (out / "model.safetensors").stat().st_mtime_ns
    assert train_dpo(of(model, tokenizer), PAIRS, QUICK, out) == log
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    assert train_dpo(of(model, tokenizer), PAIRS, replace(QUICK, epochs=1), out).steps == 2


def stop_at(step: int, ticks: list[int]) -> Any:
    def listening(_: str, done: int, __: int) -> None:
        ticks.append(done)
        if done == step:
            raise KeyboardInterrupt

    return listening


def test_a_stopped_run_resumes_to_the_same_result(tokenizer, monkeypatch, tmp_path):
    settings = replace(QUICK, epochs=4)
    whole = train_dpo(of(tiny("llama"), tokenizer), PAIRS, settings, tmp_path / "whole")
    monkeypatch.setattr(checkpoints, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SAVE_SHARE", float("inf"))
    out = tmp_path / "resumed"

    for started, step in ((0, 4), (3, 6)):
        ticks: list[int] = []
        with pytest.raises(KeyboardInterrupt), progress_to(stop_at(step, ticks)):
            train_dpo(of(tiny("llama"), tokenizer), PAIRS, settings, out)
        assert ticks == list(range(started, step + 1))
    half = tmp_path / ".resumed.training" / "checkpoint-99"
    half.mkdir()
    (half / "trainer_state.json").write_text("{")

    def stop(policy: Any, folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(replace(all_weights(tiny("llama"), tokenizer), save=stop), PAIRS, settings, out)
    assert not out.exists()
    again: list[int] = []
    with progress_to(stop_at(-1, again)):
        resumed = train_dpo(of(tiny("llama"), tokenizer), PAIRS, settings, out)
    assert again == []
    assert story(resumed) == story(whole)
    assert same(weights(out), weights(tmp_path / "whole"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resumed", "whole"]


@pytest.mark.parametrize("harm", ["cut", "flipped", "claim"])
def test_a_damaged_checkpoint_is_not_gone_on_from(tokenizer, monkeypatch, tmp_path, harm):
    """It would fail every time, or go on from weights that no training made."""
    settings = replace(QUICK, epochs=2)
    whole = train_dpo(of(tiny("llama"), tokenizer), PAIRS, settings, tmp_path / "whole")
    monkeypatch.setattr(checkpoints, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SAVE_SHARE", float("inf"))
    out = tmp_path / "resumed"
    with pytest.raises(KeyboardInterrupt), progress_to(stop_at(3, [])):
        train_dpo(of(tiny("llama"), tokenizer), PAIRS, settings, out)
    (path,) = (tmp_path / ".resumed.training").glob("checkpoint-*/model.safetensors")
    if harm == "claim":
        (tmp_path / ".resumed.training" / "inputs.json").write_text("null")
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        content = bytearray(path.read_bytes())
        content[-3] ^= 64
        path.write_bytes(content)
    ticks: list[int] = []
    with progress_to(stop_at(-1, ticks)):
        resumed = train_dpo(of(tiny("llama"), tokenizer), PAIRS, settings, out)
    assert ticks[0] == 0
    assert story(resumed) == story(whole)
    assert same(weights(out), weights(tmp_path / "whole"))


def test_patience_ends_training_and_the_best_weights_are_kept(tokenizer, tmp_path):
    settings = replace(QUICK, learning_rate=0.3, epochs=40, eval_every=1, patience=3, kl_weight=1.0)
    log = train_dpo(of(tiny("llama"), tokenizer), PAIRS, settings, tmp_path / "tuned")
    assert log.steps < 80
    assert log.steps - log.best_step == 3
    for stop in (log.best_step + 2, -1):
        with contextlib.suppress(KeyboardInterrupt), progress_to(stop_at(stop, [])):
            resumed = train_dpo(of(tiny("llama"), tokenizer), PAIRS, settings, tmp_path / "resumed")
    assert story(resumed) == story(log)
    assert log.eval_loss[log.eval_step.index(log.best_step)] == min(log.eval_loss)
    best = train_dpo(
        of(tiny("llama"), tokenizer),
        PAIRS,
        replace(settings, max_steps=log.best_step),
        tmp_path / "best",
    )
    assert best.best_step == log.best_step
    assert same(weights(tmp_path / "tuned"), weights(tmp_path / "best"))
