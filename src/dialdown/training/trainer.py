"""TRL's `DPOTrainer` with the loss of METHOD §8 (`kl_dpo_loss`) in place of its own.

TRL 1.16 scores completions with a fused head that never builds logits, and a divergence over the
full vocabulary needs them; everything else (collation, reference, checkpoints, evaluation) stays
TRL's. Imported by `dpo` only when training starts, because TRL is an optional extra.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerState
from transformers.utils import logging as transformers_logging
from trl.trainer.dpo_trainer import DPOTrainer

from ..errors import DialdownError
from ..models.forward_pass import last_positions
from ..models.kl import kl_divergence
from ..models.lm import sharing
from . import ranks
from .arguments import arguments
from .checkpoints import Pace, Snapshots, last_checkpoint
from .loss import IGNORED, LossParts, OwnTextKL, kl_dpo_loss
from .settings import DPOSettings, Example, TrainingLog

# The fields of a log that have a value for each step, and what the trainer calls them.
STEPS = {
    "step": "step",
    "loss": "loss",
    "dpo_loss": "dpo_loss",
    "kl_chosen": "kl/chosen",
    "kl_rejected": "kl/rejected",
    "reward_accuracy": "rewards/accuracies",
    "reward_margin": "rewards/margins",
    "kl_own": "kl/own",
}


class KLDPOTrainer(DPOTrainer):
    """TRL's DPO trainer with `kl_dpo_loss`, which checkpoints into a folder and goes on from there
    (METHOD §8).

    It is given token ids, as TRL's own preparation would end each continuation with an end-of-text
    token, and one cut after n tokens must not be taught to stop there.

    Args:
        policy: a causal LM or PEFT model, trained in place.
        reference: the model that it is held near, left untouched.
        tokenizer: their tokenizer, left untouched.
        settings: how to train.
        train, held_out: the examples.
        work: the folder of the checkpoints.
        own_kl: text on which the policy is held near the reference too: its KL is added to the
            loss of a training step.
        optimizer: in place of the one that the settings name.
        snapshot: called with the policy and the step at each place that the settings ask for.
        checkpointing: compute activations again in the backward pass in place of keeping them; by
            default on a GPU where all weights are trained.
    """

    def __init__(
        self,
        policy: Any,
        reference: Any,
        tokenizer: Any,
        settings: DPOSettings,
        train: Sequence[Example],
        held_out: Sequence[Example],
        work: Path,
        *,
        own_kl: OwnTextKL | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        snapshot: Callable[[Any, int], None] = lambda policy, step: None,
        checkpointing: bool | None = None,
    ) -> None:
        self.settings, self.own_kl, self.work = settings, own_kl, work
        self.train_pairs, self.eval_pairs = len(train), len(held_out)
        self._clock = time.perf_counter()
        collator = None
        if settings.kl_positions == "all":
            # The mean then depends on how much padding there is.
            pad = tokenizer.pad_token_id
            pad = tokenizer.eos_token_id if pad is None else pad
            collator = partial(padded_as_published, pad=pad)
        self._whole = not hasattr(policy, "get_base_model")
        # TRL may patch, freeze or move it.
        self._reference = sharing(reference)
        if checkpointing is None:
            checkpointing = self._whole and ranks.on_gpu(reference)
        super().__init__(
            model=policy,
            ref_model=self._reference,
            args=arguments(
                settings,
                work,
                on_cpu=not ranks.on_gpu(reference),
                device=next(reference.parameters()).device,
                mixed=policy.dtype != reference.dtype,
                whole=self._whole,
                checkpointing=checkpointing,
            ),
            data_collator=collator,
            train_dataset=Dataset.from_list([*train]),
            eval_dataset=Dataset.from_list([*held_out]),
            processing_class=copy.deepcopy(tokenizer),
            callbacks=[
                EarlyStoppingCallback(settings.patience),
                Pace(),
                Snapshots(settings.snapshots, snapshot),
            ],
            optimizers=(optimizer, None),
        )
        self.remove_callback(PrinterCallback)
        base = policy if self._whole else policy.get_base_model()
        self._cuts_logits = "logits_to_keep" in inspect.signature(base.forward).parameters

    def create_accelerator_and_postprocess(self) -> None:
        """Share out the reference among the ranks layer by layer, where the policy is: TRL would
        gather all of it at once.
        """
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled:
            from accelerate.utils.fsdp_utils import fsdp2_prepare_model
            from torch.distributed.fsdp import MixedPrecisionPolicy

            if self.args.bf16:
                # accelerate would also sum the gradients of the ranks in 16 bits.
                self.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
                    param_dtype=torch.bfloat16, reduce_dtype=torch.float32
                )
            fsdp2_prepare_model(self.accelerator, self._reference)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        # The best checkpoint is known for one only if its folder exists, which ranks write later.
        folder = self.work / f"checkpoint-{self.state.global_step}"
        ranks.on_main(partial(folder.mkdir, exist_ok=True))
        super()._save_checkpoint(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _inner_training_loop(self, batch_size: Any = None, *args: Any, **kwargs: Any) -> Any:
        # Older releases go on with a checkpoint's batches, which are another number of ranks'.
        return super()._inner_training_loop(self.args.train_batch_size, *args, **kwargs)

    def fit(self) -> TrainingLog:
        """Train to the end, from the last whole checkpoint if there is one, and load the best
        weights.
        """
        checkpoint = ranks.of_main(lambda: last_checkpoint(self.work))
        if checkpoint is None:
            self.train()
            return self._log()
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        # Resuming a run that was stopped after its last step would make one step more.
        if state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]:
            self.state = state
            if self.is_fsdp_enabled:
                self.create_optimizer()
                self.model, _ = self.accelerator.prepare(self.model, self.optimizer)
            self._load_best_model()
        else:
            self.train(resume_from_checkpoint=str(checkpoint))
        return self._log()

    def _log(self) -> TrainingLog:
        state: Any = self.state
        steps = [entry for entry in state.log_history if "loss" in entry]
        validations = [entry for entry in state.log_history if "eval_loss" in entry]
        columns: dict[str, Any] = {
            name: tuple(entry[key] for entry in steps if key in entry)
            for name, key in STEPS.items()
        }
        return TrainingLog(
            steps=state.global_step,
            best_step=state.best_global_step,
            train_pairs=self.train_pairs,
            eval_pairs=self.eval_pairs,
            eval_step=tuple(entry["step"] for entry in validations),
            eval_loss=tuple(entry["eval_loss"] for entry in validations),
            seconds=sum(entry["seconds"] for entry in state.log_history),
            **columns,
        )

    def _send_telemetry(self) -> None:
        """Report nothing to anybody."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: the checkpoints are points to resume from, removed at the end."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Linear warm-up that starts at lr / (warm-up + 1), then constant, the authors' schedule;
        or falling to 0 where the settings say so.
        """
        if self.lr_scheduler is None:
            warmup = self.args.get_warmup_steps(num_training_steps)
            optimizer = self.optimizer if optimizer is None else optimizer
            last = num_training_steps if self.settings.falling else math.inf
            self.lr_scheduler = LambdaLR(
                optimizer, lambda step: min(1 - step / last, (step + 1) / (warmup + 1))
            )
        return self.lr_scheduler

    def _logits(self, model: Any, ids: Tensor, mask: Tensor, last: int) -> Tensor:
        # The head is a fifth of a small model's work, and prompt positions need none of it.
        cut = {"logits_to_keep": last_positions(last, ids.device)} if self._cuts_logits else {}
        outputs = model(input_ids=ids, attention_mask=mask, use_cache=False, **cut)
        logits: Tensor = outputs.logits[:, -last:]
        return logits

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool) -> Any:
        if return_outputs:
            raise DialdownError(
                "KLDPOTrainer returns the loss alone: train without compute_metrics."
            )
        settings = self.settings
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        produced = ids.masked_fill(~inputs["completion_mask"].bool(), IGNORED)
        labels = F.pad(produced[:, 1:], (0, 1), value=IGNORED)
        predicting = (labels != IGNORED).any(0).int()
        first = int(predicting.argmax()) if settings.kl_positions == "completion" else 0
        last = labels.shape[1] - first
        with torch.no_grad():
            reference = self._logits(self.ref_model, ids, mask, last)
        parts = kl_dpo_loss(
            self._logits(model, ids, mask, last),
            reference,
            labels[:, first:],
            beta=settings.beta,
            kl_weight=settings.kl_weight,
            direction=settings.kl_direction,
            positions=settings.kl_positions,
        )
        self._record(parts, "train" if model.training else "eval")
        # A validation is between steps, so no step's texts are its own; it compares what is learned
        # from the pairs.
        if self.own_kl is None or not model.training:
            return parts.loss
        kl = self._kl_own(model, self.own_kl)
        self._note("train", "kl/own", kl)
        return parts.loss + self.own_kl.weight * kl

    def _kl_own(self, model: Any, own_kl: OwnTextKL) -> Tensor:
        """KL(π_ref ‖ π) on the step's texts, mean over the positions that their tokens were drawn
        at, and the last one's, in nats.
        """
        texts = ranks.share(own_kl.of_step(self.state.global_step))
        ids = torch.tensor(texts, device=self.accelerator.device)
        mask, last = torch.ones_like(ids), ids.shape[1] - own_kl.given + 1
        with torch.no_grad():
            reference = self._logits(self.ref_model, ids, mask, last)
        policy = self._logits(model, ids, mask, last)
        p, q = reference.float().log_softmax(-1), policy.float().log_softmax(-1)
        return kl_divergence(p, q).mean()

    def _record(self, parts: LossParts, mode: str) -> None:
        margins = parts.rewards_chosen - parts.rewards_rejected
        self._note(mode, "dpo_loss", parts.dpo)
        self._note(mode, "kl/chosen", parts.kl_chosen)
        self._note(mode, "kl/rejected", parts.kl_rejected)
        self._note(mode, "rewards/accuracies", (margins > 0).float())
        self._note(mode, "rewards/margins", margins)

    def _note(self, mode: str, name: str, value: Tensor) -> None:
        # Read when it is logged: each look makes a GPU wait.
        self._metrics[mode][name].append(value.detach().double().mean())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as TRL does, with the seconds since the last log: their sum survives an
        interruption.
        """
        for noted in self._metrics.values():
            means = [torch.stack(values).mean() for values in noted.values()]
            if means:
                read = self.accelerator.gather(torch.stack(means)[None]).mean(0).tolist()
                noted.update({name: [value] for name, value in zip(noted, read, strict=True)})
        now = time.perf_counter()
        logs["seconds"], self._clock = now - self._clock, now
        super().log(logs, start_time)


def padded_as_published(examples: Sequence[Example], *, pad: int) -> dict[str, Tensor]:
    """A batch as the authors lay it out: prompts padded on the left, continuations of both kinds on
    the right (METHOD §8).

    As with them, no position ids go with it, so that a model of learned positions counts the
    padding before a prompt too.

    Args:
        examples: B pairs.
        pad: the id that fills up.

    Returns:
        `input_ids`, `attention_mask` and `completion_mask`, (2B, longest prompt + longest
            continuation), chosen first.
    """
    texts = [(example["prompt_ids"], example["chosen_ids"]) for example in examples]
    texts += [(example["prompt_ids"], example["rejected_ids"]) for example in examples]
    before = max(len(prompt) for prompt, _ in texts)
    after = max(len(text) for _, text in texts)
    rows: dict[str, list[list[int]]] = {
        "input_ids": [],
        "attention_mask": [],
        "completion_mask": [],
    }
    for prompt, text in texts:
        left, right = before - len(prompt), after - len(text)
        rows["input_ids"].append([pad] * left + prompt + text + [pad] * right)
        rows["attention_mask"].append([0] * left + [1] * len(prompt + text) + [0] * right)
        rows["completion_mask"].append([0] * before + [1] * len(text) + [0] * right)
    return {name: torch.tensor(values) for name, values in rows.items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Only errors from transformers, and none of its progress bars."""
    log = transformers_logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(logging.ERROR)
    log.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            # PEFT and TRL call what transformers is about to rename, which users cannot help.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()  # type: ignore[no-untyped-call]
