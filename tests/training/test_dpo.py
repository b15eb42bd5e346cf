"""DPO training on tiny random models (METHOD §8)."""

from __future__ import annotations

import copy
import json
import random
import shutil
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dialdown import DialdownError
from dialdown.data import Pair
from dialdown.progress import progress_to
from dialdown.training import DPOSettings, GainSettings, RankOneSettings, train_dpo
from dialdown.training.dpo import RECORD, encode, split
from dialdown.training.loss import OwnTextKL
from helpers.dpo_runs import PAIRS, QUICK, of, same, story, tiny, weights


def test_a_tuned_folder_says_over_which_positions_its_kl_was(tokenizer, tmp_path):
    for positions in ("completion", "all"):
        train_dpo(
            of(tiny("llama"), tokenizer),
            PAIRS,
            replace(QUICK, kl_positions=positions, max_steps=1),
            tmp_path / positions,
        )
        record = json.loads((tmp_path / positions / RECORD).read_text())
        assert record["settings"]["kl_positions"] == positions


def test_continuations_keep_the_prompt_and_do_not_end(tokenizer):
    merging = Pair("the cat in the ho", "use is good", "\n")
    assert (
        tokenizer("the cat in the house")["input_ids"][
            : len(tokenizer("the cat in the ho")["input_ids"])
        ]
        != (tokenizer("the cat in the ho")["input_ids"])
    )
    pairs = [*PAIRS, merging]
    examples = encode(tiny("llama"), tokenizer, pairs, max_tokens=64)
    train, held_out = split(pairs, examples, eval_pairs=2, seed=0)
    seen = train + held_out
    texts = {tuple(tokenizer.decode(ids) for ids in example.values()) for example in seen}
    assert texts == {(pair.prompt, pair.chosen, pair.rejected) for pair in pairs}
    prompts = [tokenizer(pair.prompt)["input_ids"] for pair in pairs]
    assert all(example["prompt_ids"] in prompts for example in seen)
    assert all(tokenizer.eos_token_id not in ids for example in seen for ids in example.values())


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_training_leaves_the_model_alone_and_writes_a_plain_checkpoint(
    architecture, tokenizer, tmp_path, capfd, monkeypatch
):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(
        "trl.trainer.base_trainer.send_telemetry", lambda **_: pytest.fail("telemetry was sent")
    )
    model = tiny(architecture).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    configs = copy.deepcopy((model.config.to_dict(), model.generation_config.to_dict()))
    dropouts = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    ticks: list[tuple[str, int, int]] = []
    with progress_to(lambda *tick: ticks.append(tick)):
        log = train_dpo(of(model, tokenizer), PAIRS, QUICK, tmp_path / "tuned")
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""
    assert ticks == [("training", step, 6) for step in range(7)]
    assert same(before, model.state_dict())
    assert configs == (model.config.to_dict(), model.generation_config.to_dict())
    assert dropouts == [
        module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)
    ]
    assert "forward" not in vars(model)
    assert not model.training
    assert not any(weight.requires_grad or weight.grad is not None for weight in model.parameters())
    assert tokenizer.pad_token is None
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])

    assert not same(before, weights(tmp_path / "tuned"))
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "tuned")("the cat")["input_ids"]
        == tokenizer("the cat")["input_ids"]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]
    assert (log.train_pairs, log.eval_pairs, log.steps) == (6, 2, 6)
    assert log.step == (1, 2, 3, 4, 5, 6)
    assert log.eval_step == (2, 4, 6)
    assert log.eval_loss[log.eval_step.index(log.best_step)] == min(log.eval_loss)
    assert log.loss[0] == pytest.approx(np.log(2), abs=1e-5)
    assert log.loss[-1] < log.loss[0]
    assert log.loss[-1] == pytest.approx(
        log.dpo_loss[-1] + QUICK.kl_weight * (log.kl_chosen[-1] + log.kl_rejected[-1]), abs=1e-5
    )
    assert json.loads(json.dumps(asdict(log)))["steps"] == 6


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
def test_lora_changes_every_linear_layer_by_its_rank_and_nothing_else(
    architecture, tokenizer, tmp_path
):
    model = tiny(architecture).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    settings = replace(QUICK, lora_rank=3)
    log = train_dpo(of(model, tokenizer), PAIRS, settings, tmp_path / "tuned")
    assert same(before, model.state_dict())
    assert log.loss[-1] < log.loss[0] == pytest.approx(np.log(2), abs=1e-5)
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned").state_dict()
    assert tuned.keys() == before.keys()
    ranks = {
        name: int(torch.linalg.matrix_rank(tuned[name] - before[name], rtol=1e-3))
        for name in before
        if before[name].dim() == 2
    }
    tables = ("embed", "wte", "wpe", "lm_head")
    linear = {name for name in ranks if not any(table in name for table in tables)}
    assert {name: rank for name, rank in ranks.items() if rank} == dict.fromkeys(linear, 3)
    assert all(torch.equal(tuned[name], before[name]) for name in before.keys() - linear)
    again = train_dpo(of(model, tokenizer), PAIRS, settings, tmp_path / "again")
    assert again.loss == log.loss


def test_a_16_bit_model_is_trained_in_float32_and_written_in_its_own_dtype(tokenizer, tmp_path):
    model = tiny("llama").to(torch.bfloat16)
    # Steps that none of the bfloat16 weights would notice one by one.
    settings = replace(QUICK, learning_rate=1e-5, epochs=60)
    logs = {}
    for dtype in (torch.bfloat16, torch.float32):
        folder = tmp_path / str(dtype)
        logs[dtype] = train_dpo(of(model.to(dtype), tokenizer), PAIRS, settings, folder)
        tuned = AutoModelForCausalLM.from_pretrained(folder)
        assert tuned.dtype == dtype
        assert not same(tuned.state_dict(), model.to(dtype).state_dict())
    half, whole = (np.array(logs[dtype].loss) for dtype in (torch.bfloat16, torch.float32))
    assert half[-6:].mean() < half[:6].mean() - 0.03
    # bfloat16 rounds a logit in its third digit.
    np.testing.assert_allclose(half, whole, atol=0.03)


def test_what_training_leaves_has_the_files_of_its_base_and_is_readable_by_all(tokenizer, tmp_path):
    model, base = tiny("llama"), tmp_path / "base"
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    (base / "LICENSE").write_text("the licence")
    train_dpo(
        of(model, tokenizer), PAIRS, replace(QUICK, snapshots=1), tmp_path / "tuned", base=base
    )
    for folder in (tmp_path / "tuned", tmp_path / "tuned-steps" / "3"):
        config = json.loads((folder / "config.json").read_text())
        assert config["rope_theta"] == model.config.rope_parameters["rope_theta"]
        tokens = json.loads((folder / "tokenizer_config.json").read_text())
        assert tokens["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert (folder / "LICENSE").read_text() == "the licence"
        assert (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
        modes = {path.stat().st_mode for path in folder.iterdir()}
        assert modes == {(folder / "config.json").stat().st_mode}


def test_a_full_model_is_held_near_on_its_own_text(tokenizer, tmp_path):
    model, out = tiny("llama"), tmp_path / "tuned"
    texts = [[3 * i + j for j in range(12)] for i in range(5)]

    def kl() -> float:
        with torch.no_grad():
            p, q = (
                m(input_ids=torch.tensor(texts)).logits.double().log_softmax(-1)
                for m in (model, AutoModelForCausalLM.from_pretrained(out))
            )
        return float((p.exp() * (p - q)).sum(-1).mean())

    train_dpo(of(model, tokenizer), PAIRS, QUICK, out)
    free = kl()
    held = train_dpo(of(model, tokenizer), PAIRS, QUICK, out, own_kl=OwnTextKL(texts, 20.0))
    assert kl() < 0.5 * free
    assert held.kl_own[0] == pytest.approx(0, abs=1e-6)
    assert held.loss[-1] == pytest.approx(
        held.dpo_loss[-1]
        + QUICK.kl_weight * (held.kl_chosen[-1] + held.kl_rejected[-1])
        + 20.0 * held.kl_own[-1],
        abs=1e-5,
    )


def test_the_same_seed_gives_the_same_weights(tokenizer, tmp_path):
    logs = [
        train_dpo(of(tiny("gpt2"), tokenizer), PAIRS, QUICK, tmp_path / name) for name in ("a", "b")
    ]
    other = train_dpo(of(tiny("gpt2"), tokenizer), PAIRS, replace(QUICK, seed=1), tmp_path / "c")
    assert story(logs[0]) == story(logs[1]) != story(other)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"beta": 0.0}, "beta = 0.0"),
        ({"kl_weight": -1.0}, "kl_weight = -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate = nan"),
        ({"batch_size": 0}, "batch_size = 0: pass 1 or more"),
        ({"max_steps": 0}, "max_steps = 0"),
        ({"optimizer": "rmsprp"}, "did you mean 'rmsprop'"),
        ({"kl_direction": "policy-reference"}, "did you mean 'policy_reference'"),
        ({"kl_positions": "prompt"}, "Unknown kl_positions 'prompt'"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, sentence):
    with pytest.raises(DialdownError, match=sentence):
        DPOSettings(**wrong)


@pytest.mark.parametrize("settings", [GainSettings, RankOneSettings])
def test_an_edit_has_no_low_rank(settings):
    with pytest.raises(DialdownError, match="lora_rank = 8 has no effect on an edit"):
        settings(lora_rank=8)
    assert settings().lora_rank == 0


@pytest.mark.parametrize(
    ("pairs", "settings", "sentence"),
    [
        (PAIRS[:3], QUICK, "3 preference pairs of 3 prompts"),
        (
            [replace(pair, prompt="the cat") for pair in PAIRS],
            QUICK,
            "8 preference pairs of 1 prompts",
        ),
        (
            [*PAIRS, Pair("the cat", "", " is bad")],
            QUICK,
            r"1 of 9 preference pairs \(first: number 8\)",
        ),
        (
            [*PAIRS, Pair("the cat" * 40, " is", " is")],
            QUICK,
            "1 of 9 preference pairs are longer than 64 tokens",
        ),
        (PAIRS, replace(QUICK, max_tokens=4), "8 of 8 preference pairs are longer than 4 tokens"),
        (
            PAIRS,
            replace(QUICK, learning_rate=1e30, max_grad_norm=1e30),
            "The loss of DPO is (nan|inf) at step",
        ),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(pairs, settings, sentence, tokenizer, tmp_path):
    with pytest.raises(DialdownError, match=sentence):
        train_dpo(of(tiny("llama"), tokenizer), pairs, settings, tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()


def test_a_folder_of_something_else_is_not_overwritten(tokenizer, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DialdownError, match="was not written by DPO training"):
        train_dpo(of(tiny("llama"), tokenizer), PAIRS, QUICK, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_disk_without_room_is_refused_before_training(tokenizer, monkeypatch, tmp_path):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DialdownError, match="DPO needs up to"):
        train_dpo(of(tiny("llama"), tokenizer), PAIRS, QUICK, tmp_path / "tuned")


def test_a_missing_trl_names_the_extra(tokenizer, monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "dialdown.training.trainer")
    monkeypatch.delattr("dialdown.training.trainer")
    monkeypatch.setitem(sys.modules, "trl.trainer.dpo_trainer", None)
    with pytest.raises(DialdownError, match=r'pip install -e "\.\[train\]" in your clone'):
        train_dpo(of(tiny("llama"), tokenizer), PAIRS, QUICK, tmp_path / "tuned")
