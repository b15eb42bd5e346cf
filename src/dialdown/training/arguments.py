"""What TRL's trainer is told of our settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from trl.trainer.dpo_config import DPOConfig

from . import ranks
from .settings import OPTIMIZERS, DPOSettings

# Whatever the settings are.
ALWAYS: dict[str, Any] = {
    "max_length": None,
    # Every weight that is trained has a part in every loss.
    "ddp_find_unused_parameters": False,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": False,
    "restore_callback_states_from_checkpoint": True,
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "disable_tqdm": True,
    "report_to": "none",
}


def checkpointing_argument(on: bool) -> dict[str, bool]:
    """The argument of `DPOConfig` that says whether activations are computed again in place of kept
    in memory; transformers has had two names for it.
    """
    names = {field.name for field in dataclasses.fields(DPOConfig)}
    new, old = "activation_checkpointing", "gradient_checkpointing"
    return {new if new in names else old: on}


def _shared_out(checkpointing: bool) -> dict[str, Any]:
    """The arguments with which each rank holds a part of every layer, of its gradient and of the
    optimiser's state, and writes that into checkpoints.
    """
    config = {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "state_dict_type": "SHARDED_STATE_DICT",
        "activation_checkpointing": checkpointing,
    }
    return {"fsdp": True, "fsdp_config": config}


def arguments(
    settings: DPOSettings,
    work: Path,
    *,
    on_cpu: bool,
    device: torch.device,
    mixed: bool,
    whole: bool,
    checkpointing: bool,
) -> Any:
    """The arguments of `KLDPOTrainer`.

    Args:
        settings: how to train.
        work: the folder of the checkpoints.
        on_cpu: whether no GPU takes part.
        device: where the model is, which a rank may put on its GPU only later.
        mixed: whether a float32 copy of a 16-bit model computes in 16 bits.
        whole: whether all weights are trained.
        checkpointing: whether activations are computed again in the backward pass.
    """
    shared_out = whole and ranks.is_rank()
    memory: dict[str, Any] = checkpointing_argument(checkpointing and not shared_out)
    if shared_out:
        memory |= _shared_out(checkpointing)
    config = DPOConfig(
        output_dir=str(work),
        beta=settings.beta,
        optim=OPTIMIZERS[settings.optimizer][0],
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        per_device_train_batch_size=settings.batch_size // ranks.count(),
        # Ranks fill the last batch up with pairs that were read before, and of a batch of one such
        # a pair can be left out of the mean.
        per_device_eval_batch_size=1 if ranks.count() > 1 else 2 * settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=mixed,
        **memory,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        eval_steps=settings.eval_every,
        save_steps=settings.eval_every,
        **ALWAYS,
    )
    if not on_cpu and not ranks.is_rank():
        # One process would take the first GPU, and share every batch out to all that it sees.
        torch.cuda.set_device(device)
        vars(config).update(_setup_devices=device, _n_gpu=1)
    return config
