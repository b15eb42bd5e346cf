"""Tune a model on preference pairs: DPO with a KL term that holds it near the original (METHOD §8),
on TRL.

    log = train_dpo(lm, pairs, DPOSettings(epochs=1), Path("tuned"))

The model is not touched; the tuned one is an ordinary checkpoint in `tuned/`. A run that was
stopped goes on when the same call is made again, and a finished one returns its log. Dropout is off
in the policy as in the reference (TRL's default), because the KL would otherwise measure the noise
of the masks.
"""

from __future__ import annotations

import gc
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import __version__
from ..data.pairs import Pair
from ..errors import DialdownError
from ..extras import asking_for
from ..files import disk_errors, fingerprint, kept_json, whole_folder, write_json
from ..models import templates
from ..models.forward_pass import for_any_length
from ..models.hooks import check_alone
from ..models.lm import LM, weight_fingerprints
from ..models.templates import Template
from . import ranks
from .loss import OwnTextKL
from .policies import Trainable, all_weights, low_rank
from .settings import OPTIMIZERS, DPOSettings, Example, TrainingLog

RECORD = "training.json"


def train_dpo(
    lm: LM,
    pairs: Sequence[Pair],
    settings: DPOSettings,
    out: str | Path,
    *,
    own_kl: OwnTextKL | None = None,
    base: Path | None = None,
) -> TrainingLog:
    """Tune a copy of `lm` on `pairs` (METHOD §8) and write it, with its tokenizer, to the folder
    `out`.

    The copy has float32 weights; where the model has 16 bits, its arithmetic is bfloat16 and the
    checkpoint has the model's dtype. Besides the model itself, memory holds the copy, its gradients
    and the optimiser's state, or with `settings.lora_rank` the adapters alone. The same call
    resumes a run that was stopped, from checkpoints in a hidden folder beside `out` that is removed
    at the end; the result is that of a run that was never stopped. The global random generators are
    left as they were.

    Args:
        lm: the model (the reference π_ref), left untouched.
        pairs: preference pairs; prompts that are held out for validation are not trained on.
        settings: how to train.
        out: a folder that does not exist, is empty, or was written by this function.
        own_kl: text of its own on which the policy is held near `lm` too, as gains are; the paper
            has none.
        base: the folder that `lm` was loaded from, whose tokenizer and other files are copied
            beside the weights.

    Raises:
        DialdownError: TRL is missing; an intervention acts on `lm` right now; a pair is empty or
            too long; too few pairs or prompts; `out` holds something else; the disk has no room or
            cannot be written; the loss is no longer finite.
    """
    check_alone(lm, "trained")
    base = base and base.resolve()
    if ranks.wanted(settings):
        whole = not settings.lora_rank
        given = {"pairs": [*pairs], "out": Path(out).resolve(), "own_kl": own_kl, "base": base}
        return ranks.on_ranks_of(lm, train_dpo, settings, whole=whole, **given)
    policy = (
        low_rank(lm.model, lm.tokenizer, settings.lora_rank, settings.seed, base)
        if settings.lora_rank
        else all_weights(lm.model, lm.tokenizer, base)
    )
    return tune(replace(policy, template=lm.template), pairs, settings, out, own_kl=own_kl)


def tune(
    trainable: Trainable,
    pairs: Sequence[Pair],
    settings: DPOSettings,
    out: str | Path,
    *,
    own_kl: OwnTextKL | None = None,
) -> TrainingLog:
    """Train a policy on `pairs`, resuming where it was stopped; see `train_dpo`."""
    trainer = _trl()
    out = Path(out).resolve()
    model, tokenizer = trainable.model, trainable.tokenizer
    examples = encode(
        model, tokenizer, pairs, max_tokens=settings.max_tokens, template=trainable.template
    )
    train, held_out = split(pairs, examples, eval_pairs=settings.eval_pairs, seed=settings.seed)
    inputs = _inputs(trainable, settings, train, held_out, own_kl)
    ranks.check_agreement(inputs)
    work = out.with_name(f".{out.name}.training")
    if (finished := ranks.of_main(lambda: _finished(out, inputs))) is not None:
        ranks.on_main(lambda: shutil.rmtree(work, ignore_errors=True))
        return finished
    with trainer.quiet():
        policy = trainable.prepare(model)
    ranks.on_main(partial(_claim, work, inputs, policy, settings, trainable.result_bytes))

    def publish(policy: Any, folder: Path, record: dict[str, Any]) -> None:
        record = {"inputs": inputs, "settings": settings.recipe, **record}
        trained = ranks.whole(policy, model)

        def write() -> None:
            with whole_folder(folder) as unfinished:
                trainable.save(trained, unfinished)
                write_json(unfinished / RECORD, record)

        ranks.on_main(write)

    def snapshot(policy: Any, step: int) -> None:
        publish(policy, out.with_name(f"{out.name}-steps") / str(step), {"step": step})

    with disk_errors(out), trainer.quiet(), _random_state_kept(), for_any_length():
        log: TrainingLog = trainer.KLDPOTrainer(
            policy,
            model,
            tokenizer,
            settings,
            train,
            held_out,
            work,
            own_kl=own_kl,
            optimizer=trainable.optimizer and trainable.optimizer(policy),
            snapshot=snapshot,
        ).fit()
        publish(policy, out, {"log": asdict(log)})
    ranks.on_main(lambda: shutil.rmtree(work))
    # A trainer and its model refer to each other, so only a collection frees their memory.
    del policy
    gc.collect()
    return log


def _inputs(
    trainable: Trainable,
    settings: DPOSettings,
    train: Sequence[Example],
    held_out: Sequence[Example],
    own_kl: OwnTextKL | None,
) -> str:
    """Changes with whatever the result of a training depends on."""
    return fingerprint(
        type(settings).__name__,
        __version__,
        # A log of an earlier version has other fields, and is not a finished run of this one.
        [field.name for field in fields(TrainingLog)],
        settings.recipe,
        train,
        held_out,
        weight_fingerprints(trainable.model),
        *trainable.given,
        *([] if own_kl is None else [asdict(own_kl)]),
    )


def _trl() -> ModuleType:
    with asking_for("Training"):
        from . import trainer
    return trainer


def encode(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    *,
    max_tokens: int,
    template: Template = "none",
) -> list[Example]:
    """The token ids of each pair, in the order of `pairs`, as they are sampled: nothing that ends a
    text or a turn after a continuation.
    """
    examples = []
    for pair in pairs:
        (prompt,) = templates.prompt_ids(tokenizer, [pair.prompt], template)
        chosen, rejected = (
            templates.continuation_ids(tokenizer, pair.prompt, text, template)
            for text in (pair.chosen, pair.rejected)
        )
        examples.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    empty = [number for number, example in enumerate(examples) if not all(example.values())]
    if empty:
        raise DialdownError(
            f"{len(empty)} of {len(pairs)} preference pairs (first: number {empty[0]}) have an "
            "empty prompt or continuation, so there is nothing to prefer: leave them out."
        )
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or max_tokens
    limit = min(max_tokens, context)
    lengths = [
        len(example["prompt_ids"]) + max(len(example["chosen_ids"]), len(example["rejected_ids"]))
        for example in examples
    ]
    if too_long := sum(length > limit for length in lengths):
        raise DialdownError(
            f"{too_long} of {len(pairs)} preference pairs are longer than {limit} tokens "
            f"(max_tokens = {max_tokens}, the model's context {context}), the longest having "
            f"{max(lengths)}: shorten the prompts, or raise max_tokens if it is the lower one."
        )
    return examples


def split(
    pairs: Sequence[Pair], examples: list[Example], *, eval_pairs: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """Training and validation examples that share no prompt.

    Whole prompts are held out until `eval_pairs` pairs are, or a quarter of all where that is
    fewer.
    """
    count = min(eval_pairs, len(pairs) // 4)
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    random.Random(seed).shuffle(prompts)
    by_prompt: dict[str, list[Example]] = {prompt: [] for prompt in prompts}
    for pair, example in zip(pairs, examples, strict=True):
        by_prompt[pair.prompt].append(example)
    held_out: list[Example] = []
    while prompts and len(held_out) < count:
        held_out += by_prompt.pop(prompts.pop())
    train = [example for group in by_prompt.values() for example in group]
    if not train or not held_out:
        raise DialdownError(
            f"{len(pairs)} preference pairs of {len({pair.prompt for pair in pairs})} prompts "
            "cannot be split into training and validation: pass at least 4 pairs with different "
            "prompts."
        )
    return train, held_out


def _finished(out: Path, inputs: str) -> TrainingLog | None:
    """The log of a finished run with the same inputs; None where `out` may be written."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / RECORD).is_file():
        raise DialdownError(
            f"{out} exists and was not written by DPO training: pass a new folder, or empty it."
        )
    record = kept_json(out / RECORD)
    if record.get("inputs") != inputs:
        return None
    log: Any = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in record["log"].items()
    }
    return TrainingLog(**log)


def _claim(work: Path, inputs: str, policy: nn.Module, settings: DPOSettings, result: int) -> None:
    """Make `work` the folder of this run: empty, unless a run with the same inputs was stopped
    there.
    """
    claim = work / "inputs.json"
    # transformers records the path of the best checkpoint, so a run that was moved cannot be
    # resumed.
    record = {"inputs": inputs, "folder": str(work)}
    with disk_errors(work):
        if work.exists() and kept_json(claim) != record:
            shutil.rmtree(work)
        work.mkdir(parents=True, exist_ok=True)
    write_json(claim, record)
    weights = sum(parameter.nbytes for parameter in policy.parameters() if parameter.requires_grad)
    # Three checkpoints at worst (best, last and the one being written), the result, and what is
    # kept on the way.
    needed = weights * 3 * (1 + OPTIMIZERS[settings.optimizer][1])
    needed += result * (1 + settings.snapshots)
    held = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    free = shutil.disk_usage(work).free + held
    if free < needed:
        raise DialdownError(
            f"DPO needs up to {needed / 1e9:.1f} GB for checkpoints in {work.parent}, where "
            f"{free / 1e9:.1f} GB are free: make room, or pass a folder on another disk."
        )


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
