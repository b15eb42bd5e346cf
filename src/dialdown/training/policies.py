"""What of a model DPO trains: all weights, or LoRA adapters on every linear layer; and how either
becomes a checkpoint (METHOD §8).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from ..data.model_files import write_model
from ..extras import asking_for
from ..models.lm import sharing
from ..models.templates import Template


@dataclass(frozen=True)
class Trainable:
    """What of a model is trained, and how it is kept.

    Attributes:
        model: a transformers causal LM, the reference; left untouched.
        tokenizer: its tokenizer, left untouched.
        prepare: makes a policy of the model, which may be changed.
        save: writes a policy into a folder.
        result_bytes: what `save` writes.
        optimizer: makes one for a policy; None for the one that the settings name.
        given: what the result depends on besides the model, the pairs and the settings.
        template: what prompts are, as `LM.template`.
    """

    model: Any
    tokenizer: Any
    prepare: Callable[[Any], Any]
    save: Callable[[Any, Path], None]
    result_bytes: int
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None
    given: Sequence[Any] = ()
    template: Template = "none"


def all_weights(model: Any, tokenizer: Any, base: Path | None = None) -> Trainable:
    """Every weight of a copy, in float32 also where the model has 16 bits, in which most of DPO's
    small steps would round to nothing.
    """

    def prepare(model: Any) -> Any:
        policy = copy.deepcopy(model).float()
        if not any(parameter.requires_grad for parameter in policy.parameters()):
            policy.requires_grad_(True)
        return policy

    def save(policy: Any, folder: Path) -> None:
        _write(policy, model, tokenizer, folder, base)

    return Trainable(model, tokenizer, prepare, save, _bytes(model))


def low_rank(
    model: Any, tokenizer: Any, rank: int, seed: int, base: Path | None = None
) -> Trainable:
    """Float32 adapters of a rank on every linear layer but the unembedding, beside weights that the
    policy and the reference share; merged into a copy of them at the end.
    """

    def prepare(model: Any) -> Any:
        # What is learned counts twice, as is usual, whatever the rank.
        return with_adapters(model, "all-linear", seed, r=rank, lora_alpha=2 * rank)

    def save(policy: Any, folder: Path) -> None:
        merged = copy.deepcopy(policy).merge_and_unload()
        _write(merged, model, tokenizer, folder, base)

    return Trainable(model, tokenizer, prepare, save, _bytes(model))


def with_adapters(model: Any, targets: str | list[str], seed: int, **sizes: Any) -> Any:
    """A PEFT model that shares all weights of `model`, with LoRA adapters on the modules named."""
    with asking_for("A LoRA adapter"):
        from peft import LoraConfig, get_peft_model
    config = LoraConfig(
        **sizes,
        lora_dropout=0.0,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return get_peft_model(sharing(model), config)


def _write(policy: Any, model: Any, tokenizer: Any, folder: Path, base: Path | None) -> None:
    """A checkpoint of a policy in the dtype of `model`, with the configs of `model`: TRL and
    transformers wrote their token ids into the policy's.
    """
    whole = policy if policy.dtype == model.dtype else copy.deepcopy(policy).to(model.dtype)
    changed = whole.config, whole.generation_config
    whole.config, whole.generation_config = copy.deepcopy((model.config, model.generation_config))
    write_model(whole, tokenizer, folder, base)
    whole.config, whole.generation_config = changed


def _bytes(model: Any) -> int:
    return sum(weight.nbytes for weight in model.parameters())
