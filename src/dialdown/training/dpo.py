"""Tune a model on preference pairs: DPO with a KL term that holds it near the original (METHOD §8),
on TRL.

    log = train_dpo(lm.model, lm.tokenizer, pairs, DPOSettings(epochs=1), Path("tuned"))

The model is not touched; the tuned one is an ordinary checkpoint in `tuned/`. A run that was
stopped goes on when the same call is made again, and a finished one returns its log. Dropout is off
in the policy as in the reference (TRL's default), because the KL would otherwise measure the noise
of the masks.
"""

from __future__ import annotations

import copy
import gc
import math
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import nn

from ..data.model_files import write_model
from ..errors import DialdownError, nearest
from ..files import disk_errors, fingerprint, read_json, whole_folder, write_json
from ..models.lm import weight_fingerprints
from .examples import encode, split
from .loss import Elsewhere, KLDirection, KLPositions
from .make_pairs import Pair

RECORD = "training.json"
Optimizer = Literal["rmsprop", "adamw", "natural"]
OPTIMIZERS = {"rmsprop": ("rmsprop", 1), "adamw": ("adamw_torch", 2), "natural": ("sgd", 0)}
"""What transformers calls each optimiser, and how many numbers it keeps per weight; `natural` is handed to it."""


@dataclass(frozen=True)
class DPOSettings:
    """How to train; the defaults are the published program's (METHOD §8), with its γ for Gemma-2
    and Mistral, but for `kl_positions`.

    An update is one step of the optimiser, on `batch_size` * `accumulation` pairs; the authors'
    "batch 4, accumulation 4" is an update on 4 pairs, which their program cuts into 4 forward
    passes.

    Attributes:
        beta: β, how strongly preferences count against distance from the reference.
        kl_weight: γ; 0 is plain DPO.
        kl_direction: "reference_policy" is KL(π_ref ‖ π), "policy_reference" is KL(π ‖ π_ref).
        kl_positions: "completion", or "all" to include prompt and padding as the authors' code
            does, whose layout of a batch each forward pass then has (METHOD §8).
        optimizer: "rmsprop" or "adamw"; "natural" is for neuron gains (see `GainSettings`).
        learning_rate: reached after `warmup_steps` linear steps, then constant.
        warmup_steps: in updates.
        batch_size: pairs in a forward pass.
        accumulation: forward passes in an update.
        epochs: passes over the training pairs; the authors' program makes one, whatever its own
            setting says.
        max_steps: updates; -1 leaves it to `epochs`.
        max_grad_norm: the gradient is scaled down to this norm.
        max_tokens: the longest prompt plus continuation.
        eval_every: updates (not pairs) between validations, 25 of 4 pairs for the published 100
            pairs; there is always one at the end.
        eval_pairs: pairs held out, at most a quarter of those given.
        patience: validations (not updates, and not pairs) in a row without improvement before
            training stops: 30, at 25 updates of 4 pairs each, are the published 3,000 pairs.
        snapshots: models kept along the way, evenly spaced, beside the result in a folder
            `OUT-steps/STEP` each.
        seed: of the split and of the order of the pairs.

    Raises:
        DialdownError: a value outside its range.
    """

    beta: float = 0.1
    kl_weight: float = 0.05
    kl_direction: KLDirection = "reference_policy"
    kl_positions: KLPositions = "completion"
    optimizer: Optimizer = "rmsprop"
    learning_rate: float = 1e-5
    warmup_steps: int = 150
    batch_size: int = 4
    accumulation: int = 1
    epochs: int = 1
    max_steps: int = -1
    max_grad_norm: float = 10.0
    max_tokens: int = 256
    eval_every: int = 25
    eval_pairs: int = 64
    patience: int = 30
    snapshots: int = 0
    seed: int = 0
    natural_allowed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        choices = {
            "kl_direction": get_args(KLDirection),
            "kl_positions": get_args(KLPositions),
            "optimizer": get_args(Optimizer),
        }
        for name, known in choices.items():
            given = getattr(self, name)
            if given not in known:
                raise DialdownError(
                    f"Unknown {name} {given!r} for DPO: {nearest(str(given), known)}"
                )
        sizes = (
            "batch_size",
            "accumulation",
            "epochs",
            "max_tokens",
            "eval_every",
            "eval_pairs",
            "patience",
        )
        lowest = dict.fromkeys(sizes, 1) | {
            "warmup_steps": 0,
            "kl_weight": 0,
            "snapshots": 0,
            "seed": 0,
        }
        for name, least in lowest.items():
            given = getattr(self, name)
            if not (math.isfinite(given) and given >= least):
                raise DialdownError(
                    f"DPO cannot train with {name} = {given}: pass {least} or more."
                )
        for name in ("beta", "learning_rate", "max_grad_norm"):
            given = getattr(self, name)
            if not (math.isfinite(given) and given > 0):
                raise DialdownError(
                    f"DPO cannot train with {name} = {given}: pass a finite number above 0."
                )
        if self.optimizer == "natural" and not self.natural_allowed:
            raise DialdownError(
                "DPO of all weights has no price for each, which the natural gradient needs: pass "
                "optimizer='rmsprop' or 'adamw', or train neuron gains."
            )
        if self.max_steps != -1 and self.max_steps < 1:
            raise DialdownError(
                f"DPO cannot train for max_steps = {self.max_steps}: pass 1 or more, or -1 for "
                "whole epochs."
            )


@dataclass(frozen=True)
class TrainingLog:
    """What happened in training; every field is JSON-able (`dataclasses.asdict`).

    Attributes:
        steps: optimiser steps made.
        best_step: the step whose weights were kept, the one of lowest validation loss.
        train_pairs, eval_pairs: pairs trained on, and held out.
        step: optimiser steps 1, 2, ...; the next six have one value for each.
        loss, dpo_loss: the whole loss and its preference term.
        kl_chosen, kl_rejected: KL⁺ and KL⁻ in nats.
        reward_accuracy: share of pairs whose preferred continuation has the higher reward.
        reward_margin: mean difference of the two rewards.
        eval_step, eval_loss: when the held-out pairs were scored, and the loss on them, without any
            KL elsewhere.
        seconds: time spent, summed over interruptions.
        kl_elsewhere: for each step, the KL in nats on text elsewhere; empty where the training has
            none.
    """

    steps: int
    best_step: int
    train_pairs: int
    eval_pairs: int
    step: tuple[int, ...]
    loss: tuple[float, ...]
    dpo_loss: tuple[float, ...]
    kl_chosen: tuple[float, ...]
    kl_rejected: tuple[float, ...]
    reward_accuracy: tuple[float, ...]
    reward_margin: tuple[float, ...]
    eval_step: tuple[int, ...]
    eval_loss: tuple[float, ...]
    seconds: float
    kl_elsewhere: tuple[float, ...] = ()


def train_dpo(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    settings: DPOSettings,
    out: Path,
    *,
    elsewhere: Elsewhere | None = None,
    base: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> TrainingLog:
    """Tune a copy of `model` on `pairs` (METHOD §8) and write it, with its tokenizer, to the folder
    `out`.

    The copy keeps the model's dtype and device kind. Besides the model itself, memory holds the
    copy, its gradients and the optimiser's state. The same call resumes a run that was stopped,
    from checkpoints in a hidden folder beside `out` that is removed at the end; the result is that
    of a run that was never stopped. The global random generators are left as they were.

    Args:
        model: a transformers causal LM (the reference π_ref), left untouched.
        tokenizer: its tokenizer, left untouched.
        pairs: preference pairs; prompts that are held out for validation are not trained on.
        settings: how to train.
        out: a folder that does not exist, is empty, or was written by this function.
        elsewhere: text on which the policy is held near `model` too, as gains are; the paper has
            none.
        base: the folder that `model` was loaded from, whose tokenizer and other files are copied
            beside the weights.
        progress: called with "training", the steps done and the steps in all.

    Raises:
        DialdownError: TRL is missing; a pair is empty or too long; too few pairs or prompts; `out`
            holds something else; the disk has no room or cannot be written; the loss is no longer
            finite.
    """

    def save(policy: Any, folder: Path) -> None:
        # TRL and transformers wrote their token ids into the copy's configs: the model's own are
        # saved.
        theirs = policy.config, policy.generation_config
        policy.config, policy.generation_config = copy.deepcopy(
            (model.config, model.generation_config)
        )
        write_model(policy, tokenizer, folder, base)
        policy.config, policy.generation_config = theirs

    return tune(
        model,
        tokenizer,
        pairs,
        settings,
        out,
        prepare=_own_weights,
        save=save,
        elsewhere=elsewhere,
        progress=progress,
    )


def _own_weights(model: Any) -> Any:
    policy = copy.deepcopy(model)
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        policy.requires_grad_(True)
    return policy


def tune(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    settings: DPOSettings,
    out: Path,
    *,
    prepare: Callable[[Any], Any],
    save: Callable[[Any, Path], None],
    optimizer: Callable[[Any], torch.optim.Optimizer | None] = lambda policy: None,
    elsewhere: Elsewhere | None = None,
    given: Sequence[Any] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> TrainingLog:
    """Train whatever of a policy is trainable on `pairs`, resuming where it was stopped:
    `train_dpo` and `train_gains`.

    Args:
        model, tokenizer, pairs, settings, out, elsewhere, progress: see `train_dpo`.
        prepare: from the model to a policy that may be changed.
        save: writes a policy into a folder.
        optimizer: makes one for a policy, or None for the one that the settings name.
        given: what else the result depends on.

    Raises:
        DialdownError: see `train_dpo`.
    """
    fit, quiet = _trl()
    out = out.resolve()
    examples = encode(model, tokenizer, pairs, max_tokens=settings.max_tokens)
    train, held_out = split(pairs, examples, eval_pairs=settings.eval_pairs, seed=settings.seed)
    held = [] if elsewhere is None else [asdict(elsewhere)]
    weights = weight_fingerprints(model)
    inputs = fingerprint(
        type(settings).__name__, asdict(settings), train, held_out, weights, *given, *held
    )
    work = out.with_name(f".{out.name}.training")
    if (finished := _finished(out, inputs)) is not None:
        shutil.rmtree(work, ignore_errors=True)
        return finished
    with quiet():
        policy = prepare(model)
    _claim(work, inputs, policy, settings)

    def publish(policy: Any, folder: Path, record: dict[str, Any]) -> None:
        _publish(policy, save, folder, {"inputs": inputs, "settings": asdict(settings), **record})

    def snapshot(policy: Any, step: int) -> None:
        publish(policy, out.with_name(f"{out.name}-steps") / str(step), {"step": step})

    with disk_errors(out), quiet(), _random_state_kept():
        log = fit(
            policy,
            model,
            tokenizer,
            settings,
            work,
            train=train,
            held_out=held_out,
            snapshot=snapshot,
            optimizer=optimizer(policy),
            elsewhere=elsewhere,
            progress=progress,
        )
        publish(policy, out, {"log": asdict(log)})
    shutil.rmtree(work)
    # A trainer and its model refer to each other, so only a collection frees their memory.
    del policy
    gc.collect()
    return log


def _trl() -> tuple[Callable[..., TrainingLog], Callable[[], AbstractContextManager[None]]]:
    try:
        from .trainer import fit, quiet
    except ModuleNotFoundError as error:
        raise DialdownError(
            f"Training needs {error.name}, which is not installed: run pip install "
            '"dialdown[train]".'
        ) from error
    return fit, quiet


def _finished(out: Path, inputs: str) -> TrainingLog | None:
    """The log of a finished run with the same inputs; None where `out` may be written."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / RECORD).is_file():
        raise DialdownError(
            f"{out} exists and was not written by DPO training: pass a new folder, or empty it."
        )
    record = _read(out / RECORD)
    if record.get("inputs") != inputs:
        return None
    log: Any = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in record["log"].items()
    }
    return TrainingLog(**log)


def _read(path: Path) -> dict[str, Any]:
    """A record of ours; empty where it is missing or damaged, so that what it is of is made
    again.
    """
    try:
        record = read_json(path)
    except DialdownError:
        return {}
    return record if isinstance(record, dict) else {}


def _claim(work: Path, inputs: str, policy: nn.Module, settings: DPOSettings) -> None:
    """Make `work` the folder of this run: empty, unless a run with the same inputs was stopped
    there.
    """
    claim = work / "inputs.json"
    # transformers records the path of the best checkpoint, so a run that was moved cannot be
    # resumed.
    ours = {"inputs": inputs, "folder": str(work)}
    with disk_errors(work):
        if work.exists() and _read(claim) != ours:
            shutil.rmtree(work)
        work.mkdir(parents=True, exist_ok=True)
    write_json(claim, ours)
    weights = sum(parameter.nbytes for parameter in policy.parameters() if parameter.requires_grad)
    # Three checkpoints at worst (best, last and the one being written), the result, and what is
    # kept on the way.
    needed = weights * (3 * (1 + OPTIMIZERS[settings.optimizer][1]) + 1 + settings.snapshots)
    held = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    free = shutil.disk_usage(work).free + held
    if free < needed:
        raise DialdownError(
            f"DPO needs up to {needed / 1e9:.1f} GB for checkpoints in {work.parent}, where "
            f"{free / 1e9:.1f} GB are free: make room, or pass a folder on another disk."
        )


def _publish(
    policy: Any, save: Callable[[Any, Path], None], out: Path, record: dict[str, Any]
) -> None:
    """Write the tuned model, whole, as the folder `out`."""
    with whole_folder(out) as folder:
        save(policy, folder)
        write_json(folder / RECORD, record)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """TRL seeds the global generators: give the caller's back."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
