"""The DPO loss against a float64 reference and TRL's own (METHOD §8)."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from dialdown.training import DPOSettings
from dialdown.training.arguments import arguments, checkpointing_argument
from dialdown.training.trainer import KLDPOTrainer
from helpers.dpo_runs import PAIRS, same, tiny


def perturbed(model: Any) -> Any:
    """A copy whose weights differ enough for every term of the loss to matter."""
    other = copy.deepcopy(model)
    torch.manual_seed(11)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return other


def test_one_process_trains_on_the_gpu_where_its_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself transformers takes the first GPU, and every GPU for a part of each batch, which TRL
    refuses.
    """
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    second = torch.device("cuda:2")
    kinds = {"mixed": False, "whole": True, "checkpointing": False}
    told = arguments(DPOSettings(batch_size=4), tmp_path, on_cpu=False, device=second, **kinds)
    assert (told.n_gpu, told.device, chosen[-1]) == (1, second, second)
    assert (told.train_batch_size, told.eval_batch_size) == (4, 8)


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
    # is not a number.
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
            first, second = (q, p) if direction == "reference_policy" else (p, q)
            kl[key].append(
                sum((first[t].exp() * (first[t] - second[t])).sum() for t in over) / len(over)
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
    tested = kl_trainer(policies[0], reference, tokenizer, tmp_path, kl_weight=0.0)
    peer = DPOTrainer(
        model=policies[1],
        ref_model=copy.deepcopy(reference),
        args=config(tmp_path),
        train_dataset=Dataset.from_list([asdict(pair) for pair in PAIRS]),
        processing_class=copy.deepcopy(tokenizer),
    )
    batch = peer.data_collator([peer.train_dataset[i] for i in range(4)])
    losses = [
        trainer.compute_loss(policy, batch)
        for trainer, policy in zip((tested, peer), policies, strict=True)
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
