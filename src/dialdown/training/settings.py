"""How pairs are made and models and gains are trained, and what a training leaves as its log;
nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

from ..errors import DialdownError, nearest

Example = dict[str, list[int]]
"""The ids of a pair under TRL's names: `prompt_ids`, `chosen_ids`, `rejected_ids`."""

GAINS_FILE = "gains.safetensors"
RANK_ONE_FILE = "rank-one.safetensors"
"""What a training leaves in its folder."""

TOGETHER = {"processes", "nodes"}
"""The settings that say who trains together, which is not part of the result."""

KLDirection = Literal["reference_policy", "policy_reference"]
KLPositions = Literal["completion", "all"]
Optimizer = Literal["rmsprop", "adamw", "natural"]
OPTIMIZERS = {"rmsprop": ("rmsprop", 1), "adamw": ("adamw_torch", 2), "natural": ("sgd", 0)}
"""What transformers calls each optimiser, and how many numbers it keeps per weight; `natural` is
handed to it."""


@dataclass(frozen=True)
class PairSettings:
    """How pairs are made.

    Attributes:
        count: pairs wanted; prompts are used up until there are as many.
        sampled: plain samples per prompt.
        greedy: whether the most likely continuation is a candidate too; it is what many users
            decode.
        steered: further samples per prompt, steered towards the concept.
        steering_strength: how far, as a fraction of the mean norm of the final-layer residual.
        margin: minimum difference of the two scores.
        temperature: of the sampling.
        top_k: the sampling is among this many most likely tokens.
        max_new_tokens: length of a continuation.
        batch_size: prompts whose candidates are sampled together, or `auto`: 64 on a CPU (56 in a
            study), and on a GPU as many as make 512 continuations, fewer at once where its memory
            does not hold them. What is drawn depends on it.
        seed: of the sampling.
    """

    count: int = 288
    sampled: int = 4
    greedy: bool = False
    steered: int = 1
    steering_strength: float = 0.2
    margin: float = 0.3
    temperature: float = 1.0
    top_k: int = 100
    max_new_tokens: int = 20
    batch_size: int | Literal["auto"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot make a pair (DialdownError)."""
        minimum = {
            "count": 1,
            "sampled": 0,
            "steered": 0,
            "top_k": 1,
            "max_new_tokens": 1,
            "seed": 0,
        }
        minimum |= {} if self.batch_size == "auto" else {"batch_size": 1}
        _check_least(self, "Pairs cannot be made", minimum)
        check_positive("Pairs cannot be sampled", temperature=self.temperature)
        if self.steered:
            check_positive("Pairs cannot be steered", steering_strength=self.steering_strength)
        if not math.isfinite(self.margin):
            raise DialdownError(
                f"Pairs cannot be made with margin = {self.margin}: pass a finite number such as "
                "0.3."
            )
        if self.unsteered + self.steered < 2:
            raise DialdownError(
                "A pair needs two candidates per prompt: raise pairs.sampled or pairs.steered, or "
                "set pairs.greedy."
            )

    @property
    def unsteered(self) -> int:
        """Candidates per prompt that are not steered, which come first."""
        return self.sampled + self.greedy


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
            does, whose layout of a batch each forward pass then has (METHOD §8); one process alone
            trains so.
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
        lora_rank: train LoRA adapters of this rank on every linear layer in place of the weights
            themselves, and merge them at the end; 0 trains all weights. Memory then holds the model
            once, and no gradients or optimiser state of it. Their learning rates are some ten times
            those of whole weights.
        snapshots: models kept along the way, evenly spaced, beside the result in a folder
            `OUT-steps/STEP` each.
        processes: ranks that train together on a machine, one per GPU: with all weights trained,
            each holds its part of them (docs/cluster.md).
        nodes: machines that train together; on the others `dialdown join` runs.
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
    lora_rank: int = 0
    snapshots: int = 0
    processes: int = 1
    nodes: int = 1
    seed: int = 0
    natural_allowed: ClassVar[bool] = False
    falling: ClassVar[bool] = False
    """Whether the rate falls to 0 at the last step."""

    def __post_init__(self) -> None:
        known: dict[str, Any] = {
            "kl_direction": get_args(KLDirection),
            "kl_positions": get_args(KLPositions),
            "optimizer": get_args(Optimizer),
        }
        for name, choices in known.items():
            if (given := getattr(self, name)) not in choices:
                raise DialdownError(
                    f"Unknown {name} {given!r} for DPO: {nearest(str(given), choices)}"
                )
        minimum = dict.fromkeys(("batch_size", "accumulation", "epochs", "max_tokens"), 1)
        minimum |= dict.fromkeys(("eval_every", "eval_pairs", "patience", *TOGETHER), 1)
        minimum |= dict.fromkeys(("warmup_steps", "kl_weight", "lora_rank", "snapshots", "seed"), 0)
        _check_least(self, "DPO cannot train", minimum)
        positive = ("beta", "learning_rate", "max_grad_norm")
        check_positive("DPO cannot train", **{name: getattr(self, name) for name in positive})
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
        if self.batch_size % self.ranks:
            raise DialdownError(
                f"batch_size = {self.batch_size} cannot be shared out among {self.ranks} "
                f"ranks: pass a multiple of {self.ranks} (and lower accumulation as much), or "
                "other processes."
            )
        if self.ranks > 1 and self.kl_positions == "all":
            raise DialdownError(
                f"kl_positions = 'all' cannot be shared out among {self.ranks} ranks, whose parts "
                "of a batch have other padding, on which its KL depends, than the whole: pass "
                "kl_positions='completion', or one process."
            )

    @property
    def ranks(self) -> int:
        """Of all machines."""
        return self.processes * self.nodes

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings that the result depends on."""
        return {name: value for name, value in asdict(self).items() if name not in TOGETHER}


@dataclass(frozen=True)
class EditSettings(DPOSettings):
    """How to train an edit in place of the weights: DPO's settings with what few numbers need, one
    pass of small batches.

    See `DPOSettings` for the attributes, of which `lora_rank` has no part here; `docs/lab-log.md`
    says what else was tried.

    Attributes:
        own_kl_weight: what KL(base ‖ edited) on text of the model's own, in nats per position,
            counts in the loss of each step; 0 leaves it out.

    Raises:
        DialdownError: a value outside its range.
    """

    own_kl_weight: float = 2.0
    warmup_steps: int = 0
    batch_size: int = 8
    accumulation: int = 1
    epochs: int = 1
    eval_every: int = 1000
    eval_pairs: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_least(self, "An edit cannot be trained", {"own_kl_weight": 0})
        if self.lora_rank:
            raise DialdownError(
                f"lora_rank = {self.lora_rank} has no effect on an edit, whose few numbers are "
                "trained in place of the weights: leave it out, or train the model itself with "
                "train_dpo."
            )


@dataclass(frozen=True)
class GainSettings(EditSettings):
    """How to train neuron gains; see `EditSettings`.

    Attributes:
        optimizer: "natural" is the natural gradient, with steps of one length; the others take
            steps in the gains themselves.
        learning_rate: with "natural" the length of a step, half whose square is the diagonal's KL
            (see `fisher`).
        damping: with "natural", see `fisher.damped`.

    Raises:
        DialdownError: a value outside its range.
    """

    optimizer: Optimizer = "natural"
    learning_rate: float = 2.5e-2
    damping: float = 0.1
    natural_allowed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("Gains have no price", damping=self.damping)


@dataclass(frozen=True)
class RankOneSettings(EditSettings):
    """How to train one direction more per layer; see `EditSettings`.

    Attributes:
        learning_rate: by which share of its own norm the first step changes each weight matrix; it
            falls linearly to 0 at the last.

    Raises:
        DialdownError: a value outside its range.
    """

    optimizer: Optimizer = "adamw"
    learning_rate: float = 3e-3
    falling: ClassVar[bool] = True


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
        eval_step, eval_loss: when the held-out pairs were scored, and the loss on them, without the
            KL on its own text.
        seconds: time spent, summed over interruptions.
        kl_own: for each step, the KL in nats on text of its own; empty where the training has
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
    kl_own: tuple[float, ...] = ()


def _check_least(settings: Any, doing: str, minimum: Mapping[str, float]) -> None:
    for name, lowest in minimum.items():
        given = getattr(settings, name)
        if not (math.isfinite(given) and given >= lowest):
            raise DialdownError(f"{doing} with {name} = {given}: pass {lowest} or more.")


def check_positive(doing: str, **given: float) -> None:
    """Refuse a number that is not finite and above 0 (DialdownError); `doing` is what it cannot do,
    such as "DPO cannot train".
    """
    for name, number in given.items():
        if not (math.isfinite(number) and number > 0):
            raise DialdownError(f"{doing} with {name} = {number}: pass a finite number above 0.")
