"""The DPO loss against a float64 reference and TRL's own, and training on tiny random models
(METHOD §8).
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
)
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from dialdown import DialdownError
from dialdown.data import Pair
from dialdown.training import DPOSettings, TrainingLog, checkpoints, train_dpo
from dialdown.training.arguments import checkpointing_argument
from dialdown.training.dpo import RECORD, all_weights, encode, split, tune
from dialdown.training.loss import OwnTextKL
from dialdown.training.trainer import KLDPOTrainer

NOUNS = ("cat", "dog", "house", "tree", "river", "stone", "cloud", "road")
PAIRS = tuple(
    Pair(
        f"the {noun} in the {other}",
        f" is good and{' very' * (i % 3)} kind",
        " is bad" + " and cruel" * (i % 2 + 1),
    )
    for i, (noun, other) in enumerate(zip(NOUNS, reversed(NOUNS), strict=True))
)
QUICK = DPOSettings(
    learning_rate=1e-2,
    warmup_steps=1,
    batch_size=2,
    accumulation=2,
    epochs=3,
    eval_every=2,
    eval_pairs=2,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    """Tiny matrices gain nothing from threads and lose much to them on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    words = [text for pair in PAIRS for text in (pair.prompt, pair.chosen, pair.rejected)]
    core.train_from_iterator(
        words * 4,
        trainers.BpeTrainer(
            vocab_size=340,
            special_tokens=["<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


def tiny(architecture: str, vocabulary: int = 340) -> Any:
    torch.manual_seed(7)
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    config = {
        "gpt2": lambda: GPT2Config(
            vocab_size=vocabulary,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=64,
            initializer_range=0.3,
        ),
        "llama": lambda: LlamaConfig(**sizes),
        "mistral": lambda: MistralConfig(**sizes, sliding_window=4),
        "gemma2": lambda: Gemma2Config(**sizes, head_dim=8, final_logit_softcapping=3.0),
    }[architecture]()
    return AutoModelForCausalLM.from_config(config).eval()


def perturbed(model: Any) -> Any:
    """A copy whose weights differ enough for every term of the loss to matter."""
    other = copy.deepcopy(model)
    torch.manual_seed(11)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return other


EXAMPLES = [
    {"prompt_ids": [5, 6, 7], "chosen_ids": [8, 9], "rejected_ids": [10, 11, 12, 13]},
    {"prompt_ids": [20, 21, 22, 23, 24], "chosen_ids": [25], "rejected_ids": [26, 27]},
    {"prompt_ids": [30], "chosen_ids": [31, 32, 33], "rejected_ids": [34]},
]


def config(tmp_path: Path) -> DPOConfig:
    return DPOConfig(
        output_dir=str(tmp_path),
        beta=0.3,
        bf16=False,
        use_cpu=True,
        **checkpointing_argument(False),
        report_to="none",
        max_length=None,
        per_device_train_batch_size=3,
    )


def kl_trainer(
    policy: Any, reference: Any, tokenizer: Any, tmp_path: Path, **changes: Any
) -> KLDPOTrainer:
    settings = DPOSettings(beta=0.3, batch_size=3, **{"kl_weight": 0.7, **changes})
    return KLDPOTrainer(policy, reference, tokenizer, settings, EXAMPLES, EXAMPLES, tmp_path)


def naive_loss(
    policy: Any, reference: Any, *, gamma: float, direction: str, positions: str
) -> tuple[float, Any]:
    """METHOD §8 and its gradient in float64, one sequence at a time; "all" pads as the authors do,
    prompts on the left.
    """
    # Gemma-2's attention takes its softmax in float32, where a row of padding under float64's mask
    # is no number.
    exact = (
        torch.float32
        if positions == "all" and policy.config.model_type == "gemma2"
        else torch.float64
    )
    policy, reference = copy.deepcopy(policy).to(exact), copy.deepcopy(reference).to(exact)
    sequences = {
        key: [(example["prompt_ids"], example[f"{key}_ids"]) for example in EXAMPLES]
        for key in ("chosen", "rejected")
    }
    widths = [
        max(len(part[place]) for pairs in sequences.values() for part in pairs) for place in (0, 1)
    ]
    ratios: dict[str, list[torch.Tensor]] = {"chosen": [], "rejected": []}
    kl: dict[str, list[torch.Tensor]] = {"chosen": [], "rejected": []}
    for key, pairs in sequences.items():
        for prompt, text in pairs:
            padded = positions == "all"
            left, right = (widths[0] - len(prompt), widths[1] - len(text)) if padded else (0, 0)
            ids = torch.tensor([[0] * left + prompt + text + [0] * right])
            mask = torch.tensor([[0] * left + [1] * (len(prompt) + len(text)) + [0] * right])
            p, q = (
                m(ids, attention_mask=mask).logits[0].log_softmax(-1) for m in (policy, reference)
            )
            where = range(left + len(prompt) - 1, left + len(prompt) + len(text) - 1)
            ratios[key].append(sum(p[t, ids[0, t + 1]] - q[t, ids[0, t + 1]] for t in where))
            over = range(sum(widths)) if padded else where
            one, other = (q, p) if direction == "reference_policy" else (p, q)
            kl[key].append(
                sum((one[t].exp() * (one[t] - other[t])).sum() for t in over) / len(over)
            )
    pairs = zip(ratios["chosen"], ratios["rejected"], strict=True)
    preference = sum(-torch.sigmoid(0.3 * (good - bad)).log() for good, bad in pairs) / len(
        EXAMPLES
    )
    loss = preference + gamma * sum(sum(values) / len(values) for values in kl.values())
    loss.backward()
    return loss.item(), [weight.grad for weight in policy.parameters()]


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "mistral", "gemma2"])
@pytest.mark.parametrize("positions", ["completion", "all"])
@pytest.mark.parametrize("direction", ["reference_policy", "policy_reference"])
def test_loss_is_that_of_the_method(architecture, positions, direction, tokenizer, tmp_path):
    reference = tiny(architecture)
    policy = perturbed(reference)
    expected, gradient = naive_loss(
        policy, reference, gamma=0.7, direction=direction, positions=positions
    )
    trainer = kl_trainer(
        policy, reference, tokenizer, tmp_path, kl_direction=direction, kl_positions=positions
    )
    loss = trainer.compute_loss(policy, trainer.data_collator(EXAMPLES))
    assert loss.item() == pytest.approx(expected, rel=2e-5)
    loss.backward()
    for weight, other in zip(policy.parameters(), gradient, strict=True):
        torch.testing.assert_close(weight.grad.double(), other.double(), rtol=1e-3, atol=2e-5)
    assert trainer._metrics["eval"]["kl/chosen"][0] > 0
    assert trainer._metrics["eval"]["kl/rejected"][0] > 0


def test_prompts_are_padded_on_the_left_and_continuations_on_the_right_where_all_positions_count(
    tokenizer, tmp_path
):
    """The authors' layout, so that the mean is over as many positions as theirs: longest prompt +
    longest continuation.
    """
    batch = kl_trainer(
        tiny("gpt2"), tiny("gpt2"), tokenizer, tmp_path, kl_positions="all"
    ).data_collator(EXAMPLES)
    e = tokenizer.eos_token_id
    assert batch["input_ids"].tolist() == [
        [e, e, 5, 6, 7, 8, 9, e, e], [20, 21, 22, 23, 24, 25, e, e, e], [e, e, e, e, 30, 31, 32,
        33, e],
        [e, e, 5, 6, 7, 10, 11, 12, 13], [20, 21, 22, 23, 24, 26, 27, e, e], [e, e, e, e, 30, 34,
        e, e, e],
    ]  # fmt: skip
    assert batch["attention_mask"].tolist() == (batch["input_ids"] != e).int().tolist()
    assert batch["completion_mask"].sum(1).tolist() == [2, 1, 3, 4, 2, 1]
    assert not batch["completion_mask"][:, :5].any()


def test_a_tuned_folder_says_over_which_positions_its_kl_was(tokenizer, tmp_path):
    for positions in ("completion", "all"):
        train_dpo(
            tiny("llama"),
            tokenizer,
            PAIRS,
            replace(QUICK, kl_positions=positions, max_steps=1),
            tmp_path / positions,
        )
        record = json.loads((tmp_path / positions / RECORD).read_text())
        assert record["settings"]["kl_positions"] == positions


def test_loss_does_not_depend_on_how_pairs_are_batched(tokenizer, tmp_path):
    reference = tiny("gpt2")
    policy = perturbed(reference)
    trainer = kl_trainer(policy, reference, tokenizer, tmp_path)
    together = trainer.compute_loss(policy, trainer.data_collator(EXAMPLES)).item()
    alone = [
        trainer.compute_loss(policy, trainer.data_collator([example])).item()
        for example in EXAMPLES
    ]
    assert together == pytest.approx(np.mean(alone), rel=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
def test_without_kl_it_is_the_loss_and_gradient_of_trl(architecture, tokenizer, tmp_path):
    reference = tiny(architecture)
    policies = [perturbed(reference) for _ in range(2)]
    ours = kl_trainer(policies[0], reference, tokenizer, tmp_path, kl_weight=0.0)
    theirs = DPOTrainer(
        model=policies[1],
        ref_model=copy.deepcopy(reference),
        args=config(tmp_path),
        train_dataset=Dataset.from_list([asdict(pair) for pair in PAIRS]),
        processing_class=copy.deepcopy(tokenizer),
    )
    batch = theirs.data_collator([theirs.train_dataset[i] for i in range(4)])
    losses = [
        trainer.compute_loss(policy, batch)
        for trainer, policy in zip((ours, theirs), policies, strict=True)
    ]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    for loss in losses:
        loss.backward()
    for (name, weight), other in zip(
        policies[0].named_parameters(), policies[1].parameters(), strict=True
    ):
        torch.testing.assert_close(weight.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_activations_that_are_computed_again_change_nothing(tokenizer, tmp_path):
    reference, passes, losses, trained = tiny("llama"), [], [], []
    for checkpointing in (False, True):
        policy = perturbed(reference).train()
        policy.model.layers[0].mlp.register_forward_pre_hook(
            lambda *_, again=checkpointing: passes.append(again)
        )
        settings = DPOSettings(batch_size=3)
        trainer = KLDPOTrainer(
            policy, reference, tokenizer, settings, EXAMPLES, EXAMPLES, tmp_path,
            checkpointing=checkpointing,
        )  # fmt: skip
        trainer.train()
        losses.append(trainer._log().loss)
        trained.append(dict(policy.named_parameters()))
    assert losses[0] == losses[1]
    assert same(*trained)
    assert passes.count(True) > passes.count(False)


def test_a_peft_policy_trains_only_its_adapter(tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    reference = tiny("llama")
    adapter = peft.IA3Config(target_modules=["down_proj"], feedforward_modules=["down_proj"])
    policy = peft.get_peft_model(copy.deepcopy(reference), adapter)
    trainer = kl_trainer(policy, reference, tokenizer, tmp_path)
    loss = trainer.compute_loss(policy, trainer.data_collator(EXAMPLES))
    assert loss.item() == pytest.approx(np.log(2), abs=1e-6)
    loss.backward()
    graded = {name for name, weight in policy.named_parameters() if weight.grad is not None}
    assert len(graded) == 2
    assert all("ia3" in name for name in graded)


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


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def story(log: TrainingLog) -> TrainingLog:
    """The log without what differs between two equal runs."""
    return replace(log, seconds=0.0)


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
    log = train_dpo(
        model,
        tokenizer,
        PAIRS,
        QUICK,
        tmp_path / "tuned",
        progress=lambda *tick: ticks.append(tick),
    )
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
    log = train_dpo(model, tokenizer, PAIRS, settings, tmp_path / "tuned")
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
    again = train_dpo(model, tokenizer, PAIRS, settings, tmp_path / "again")
    assert again.loss == log.loss


def test_a_16_bit_model_is_trained_in_float32_and_written_in_its_own_dtype(tokenizer, tmp_path):
    model = tiny("llama").to(torch.bfloat16)
    # Steps that none of the bfloat16 weights would notice one by one.
    settings = replace(QUICK, learning_rate=1e-5, epochs=60)
    logs = {}
    for dtype in (torch.bfloat16, torch.float32):
        folder = tmp_path / str(dtype)
        logs[dtype] = train_dpo(model.to(dtype), tokenizer, PAIRS, settings, folder)
        tuned = AutoModelForCausalLM.from_pretrained(folder)
        assert tuned.dtype == dtype
        assert not same(tuned.state_dict(), model.to(dtype).state_dict())
    half, whole = (np.array(logs[dtype].loss) for dtype in (torch.bfloat16, torch.float32))
    assert half[-6:].mean() < half[:6].mean() - 0.03
    # bfloat16 rounds a logit in its third digit.
    np.testing.assert_allclose(half, whole, atol=0.03)


def test_snapshots_are_the_models_along_the_way(tokenizer, tmp_path):
    model = tiny("llama")
    train_dpo(model, tokenizer, PAIRS, replace(QUICK, snapshots=2), tmp_path / "tuned")
    assert {path.name for path in (tmp_path / "tuned-steps").iterdir()} == {"2", "4"}
    train_dpo(model, tokenizer, PAIRS, replace(QUICK, max_steps=2), tmp_path / "short")
    assert same(weights(tmp_path / "tuned-steps" / "2"), weights(tmp_path / "short"))
    assert not same(weights(tmp_path / "tuned-steps" / "4"), weights(tmp_path / "short"))
    AutoModelForCausalLM.from_pretrained(tmp_path / "tuned-steps" / "4")


def test_what_training_leaves_has_the_files_of_its_base_and_is_readable_by_all(tokenizer, tmp_path):
    model, base = tiny("llama"), tmp_path / "base"
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    (base / "LICENSE").write_text("the licence")
    train_dpo(model, tokenizer, PAIRS, replace(QUICK, snapshots=1), tmp_path / "tuned", base=base)
    for folder in (tmp_path / "tuned", tmp_path / "tuned-steps" / "3"):
        config = json.loads((folder / "config.json").read_text())
        assert config["rope_theta"] == model.config.rope_parameters["rope_theta"]
        tokens = json.loads((folder / "tokenizer_config.json").read_text())
        assert tokens["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert (folder / "LICENSE").read_text() == "the licence"
        assert (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
        modes = {path.stat().st_mode for path in folder.iterdir()}
        assert modes == {(folder / "config.json").stat().st_mode}


def test_a_finished_run_returns_its_log_and_other_settings_replace_it(tokenizer, tmp_path):
    model, out = tiny("llama"), tmp_path / "tuned"
    log = train_dpo(model, tokenizer, PAIRS, QUICK, out)
    written = (out / "model.safetensors").stat().st_mtime_ns
    assert train_dpo(model, tokenizer, PAIRS, QUICK, out) == log
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    assert train_dpo(model, tokenizer, PAIRS, replace(QUICK, epochs=1), out).steps == 2


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

    train_dpo(model, tokenizer, PAIRS, QUICK, out)
    free = kl()
    held = train_dpo(model, tokenizer, PAIRS, QUICK, out, own_kl=OwnTextKL(texts, 20.0))
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
        train_dpo(tiny("gpt2"), tokenizer, PAIRS, QUICK, tmp_path / name) for name in ("a", "b")
    ]
    other = train_dpo(tiny("gpt2"), tokenizer, PAIRS, replace(QUICK, seed=1), tmp_path / "c")
    assert story(logs[0]) == story(logs[1]) != story(other)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def stop_at(step: int, ticks: list[int]) -> Any:
    def progress(_: str, done: int, __: int) -> None:
        ticks.append(done)
        if done == step:
            raise KeyboardInterrupt

    return progress


def test_a_stopped_run_resumes_to_the_same_result(tokenizer, monkeypatch, tmp_path):
    settings = replace(QUICK, epochs=4)
    whole = train_dpo(tiny("llama"), tokenizer, PAIRS, settings, tmp_path / "whole")
    monkeypatch.setattr(checkpoints, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SAVE_SHARE", float("inf"))
    out = tmp_path / "resumed"

    for started, step in ((0, 4), (3, 6)):
        ticks: list[int] = []
        with pytest.raises(KeyboardInterrupt):
            train_dpo(tiny("llama"), tokenizer, PAIRS, settings, out, progress=stop_at(step, ticks))
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
    resumed = train_dpo(tiny("llama"), tokenizer, PAIRS, settings, out, progress=stop_at(-1, again))
    assert again == []
    assert story(resumed) == story(whole)
    assert same(weights(out), weights(tmp_path / "whole"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resumed", "whole"]


@pytest.mark.parametrize("harm", ["cut", "flipped", "claim"])
def test_a_damaged_checkpoint_is_not_gone_on_from(tokenizer, monkeypatch, tmp_path, harm):
    """It would fail every time, or go on from weights that no training made."""
    settings = replace(QUICK, epochs=2)
    whole = train_dpo(tiny("llama"), tokenizer, PAIRS, settings, tmp_path / "whole")
    monkeypatch.setattr(checkpoints, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SAVE_SHARE", float("inf"))
    out = tmp_path / "resumed"
    with pytest.raises(KeyboardInterrupt):
        train_dpo(tiny("llama"), tokenizer, PAIRS, settings, out, progress=stop_at(3, []))
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
    resumed = train_dpo(tiny("llama"), tokenizer, PAIRS, settings, out, progress=stop_at(-1, ticks))
    assert ticks[0] == 0
    assert story(resumed) == story(whole)
    assert same(weights(out), weights(tmp_path / "whole"))


def test_patience_ends_training_and_the_best_weights_are_kept(tokenizer, tmp_path):
    settings = replace(QUICK, learning_rate=0.3, epochs=40, eval_every=1, patience=3, kl_weight=1.0)
    log = train_dpo(tiny("llama"), tokenizer, PAIRS, settings, tmp_path / "tuned")
    assert log.steps < 80
    assert log.steps - log.best_step == 3
    for progress in (stop_at(log.best_step + 2, []), None):
        with contextlib.suppress(KeyboardInterrupt):
            resumed = train_dpo(
                tiny("llama"), tokenizer, PAIRS, settings, tmp_path / "resumed", progress=progress
            )
    assert story(resumed) == story(log)
    assert log.eval_loss[log.eval_step.index(log.best_step)] == min(log.eval_loss)
    best = train_dpo(
        tiny("llama"),
        tokenizer,
        PAIRS,
        replace(settings, max_steps=log.best_step),
        tmp_path / "best",
    )
    assert best.best_step == log.best_step
    assert same(weights(tmp_path / "tuned"), weights(tmp_path / "best"))


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
        train_dpo(tiny("llama"), tokenizer, pairs, settings, tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()


def test_a_folder_of_something_else_is_not_overwritten(tokenizer, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DialdownError, match="was not written by DPO training"):
        train_dpo(tiny("llama"), tokenizer, PAIRS, QUICK, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_disk_without_room_is_refused_before_training(tokenizer, monkeypatch, tmp_path):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DialdownError, match="DPO needs up to"):
        train_dpo(tiny("llama"), tokenizer, PAIRS, QUICK, tmp_path / "tuned")


def test_a_missing_trl_names_the_extra(tokenizer, monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "dialdown.training.trainer")
    monkeypatch.delattr("dialdown.training.trainer")
    monkeypatch.setitem(sys.modules, "trl.trainer.dpo_trainer", None)
    with pytest.raises(DialdownError, match=r'pip install -e "\.\[train\]" in your clone'):
        train_dpo(tiny("llama"), tokenizer, PAIRS, QUICK, tmp_path / "tuned")
