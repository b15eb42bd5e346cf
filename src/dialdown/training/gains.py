"""Neuron gains: the DPO loss with nothing trainable but one number per neuron, an ordinary `scale`
intervention (METHOD §7, §8).

    information = fisher_information(lm, own_text(lm))
    texts = own_text(lm, texts=96, tokens=64, seed=1)
    gains, log = train_gains(lm, pairs, GainSettings(), Path("gains"), information=information, texts=texts)
    plain = gains.fold(lm)

One gain per neuron is exactly IA3 on the input of the MLP's down projection, so PEFT makes the
parameters and TRL trains them as it trains a whole model in `dpo`. No weight has a gradient, and
the reference and the policy share all of them. A step follows the natural gradient: it goes where
the loss falls most for what it costs elsewhere (see `fisher`). That price is of each gain by
itself, and what gains cost together is several times as much: so the KL that they cost is part of
the loss too, as it is, on other text that the model wrote.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from transformers.pytorch_utils import Conv1D

from ..errors import DialdownError
from ..interventions.intervention import Intervention
from ..interventions.paper import LESS
from ..models.lm import LM
from ..neurons.activations import NeuronMeans
from ..neurons.table import NeuronTable
from .dpo import DPOSettings, Optimizer, TrainingLog, tune
from .fisher import NaturalGradient, check_damping, damped
from .loss import Elsewhere
from .make_pairs import Pair

FILE = "gains.safetensors"


@dataclass(frozen=True)
class GainSettings(DPOSettings):
    """How to train neuron gains: DPO's settings with what one number per neuron needs, one pass of
    small batches.

    See `DPOSettings` for the attributes; `docs/lab-log.md` says what else was tried.

    Attributes:
        optimizer: "natural" is the natural gradient, with steps of one length; the others take
            steps in the gains themselves.
        learning_rate: with "natural" the length of a step, half whose square is the diagonal's KL
            (see `fisher`).
        damping: with "natural", see `fisher.damped`.
        own_kl_weight: what KL(base ‖ gains) on text of the model's own, in nats per position,
            counts in the loss of each step; 0 leaves it out.

    Raises:
        DialdownError: a value outside its range.
    """

    optimizer: Optimizer = "natural"
    learning_rate: float = 2.5e-2
    damping: float = 0.1
    own_kl_weight: float = 2.0
    natural_allowed: ClassVar[bool] = True
    warmup_steps: int = 0
    batch_size: int = 8
    accumulation: int = 1
    epochs: int = 1
    eval_every: int = 1000
    eval_pairs: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping(self.damping)
        if not (math.isfinite(self.own_kl_weight) and self.own_kl_weight >= 0):
            raise DialdownError(
                f"Gains cannot be trained with own_kl_weight = {self.own_kl_weight}: pass 0, which "
                "leaves that KL out, or more."
            )


def train_gains(
    lm: LM,
    pairs: Sequence[Pair],
    settings: GainSettings,
    out: Path,
    *,
    information: NDArray[np.float64] | None = None,
    texts: Sequence[Sequence[int]] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Intervention, TrainingLog]:
    """Train one gain per neuron of `lm` on `pairs` and write them to the folder `out` (METHOD §8,
    with gains as the only weights).

    The gains are float32 whatever the model's dtype, and the model is left untouched. The same call
    resumes a run that was stopped (see `train_dpo`).

    Args:
        lm: the model; it is the reference too.
        pairs: preference pairs; prompts that are held out for validation are not trained on.
        settings: how to train.
        out: a folder that does not exist, is empty, or was written by this function.
        information: (L, F), from `fisher_information`; the natural gradient needs it.
        texts: token ids of one length, from `own_text` with another seed than the texts of
            `information`; `own_kl_weight` needs them.
        progress: called with "training", the steps done and the steps in all.

    Returns:
        a `scale` intervention of all L x F neurons, and what happened in training.

    Raises:
        DialdownError: the natural gradient without `information` of this model; a KL on no texts;
            see `train_dpo`.
    """
    prices = _prices(lm, settings, information) if settings.optimizer == "natural" else None
    elsewhere = _elsewhere(lm, settings, texts) if settings.own_kl_weight > 0 else None
    paths = [layer.path for layer in lm.view.layers]

    def prepare(model: Any) -> Any:
        try:
            from peft import IA3Config, get_peft_model
        except ModuleNotFoundError as error:
            raise DialdownError(
                "Neuron gains are IA3 parameters of PEFT, which is not installed: run pip install "
                '"dialdown[train]".'
            ) from error
        from .trainer import sharing

        conv = isinstance(lm.view.layers[0].down, Conv1D)
        config = IA3Config(
            target_modules=paths,
            feedforward_modules=paths,
            fan_in_fan_out=conv,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(sharing(model), config)

    def save(policy: Any, folder: Path) -> None:
        base = policy.get_base_model()
        rows = [
            base.get_submodule(path).ia3_l["default"].detach().flatten().double().cpu()
            for path in paths
        ]
        gain = torch.stack(rows).numpy()
        as_scale("neuron_gains", gain, {"base": lm.describe(), "pairs": len(pairs)}).save(
            folder / FILE
        )

    def optimizer(policy: Any) -> NaturalGradient | None:
        if prices is None:
            return None
        base = policy.get_base_model()
        gains = [base.get_submodule(path).ia3_l["default"] for path in paths]
        by_gain = zip(gains, map(torch.as_tensor, prices), strict=True)
        return NaturalGradient(
            [(gain, price.to(gain).view_as(gain)) for gain, price in by_gain],
            settings.learning_rate,
        )

    log = tune(
        lm.model,
        lm.tokenizer,
        pairs,
        settings,
        out,
        prepare=prepare,
        save=save,
        optimizer=optimizer,
        elsewhere=elsewhere,
        given=[prices],
        progress=progress,
    )
    return Intervention.load(out / FILE), log


def _prices(
    lm: LM, settings: GainSettings, information: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    shape = (lm.view.n_layers, lm.view.n_neurons)
    if information is None or information.shape != shape:
        raise DialdownError(
            f"The natural gradient needs the price of each of the {shape[0]} x {shape[1]} gains of "
            f"{lm.name}: pass information=fisher_information(lm, own_text(lm))."
        )
    return damped(information, settings.damping)


def _elsewhere(lm: LM, settings: GainSettings, texts: Sequence[Sequence[int]]) -> Elsewhere:
    lengths, known = {len(text) for text in texts}, lm.view.unembedding.weight.shape[0]
    fits = len(lengths) == 1 and 0 < max(lengths) <= lm.context
    if not (fits and all(0 <= token < known for text in texts for token in text)):
        raise DialdownError(
            f"{len(texts)} texts of lengths {sorted(lengths)} were given, and the KL on "
            f"{lm.name}'s own text needs ids below {known:,} of one length up to {lm.context:,}: "
            "pass texts=own_text(lm, texts=96, tokens=64, seed=1), or own_kl_weight=0."
        )
    return Elsewhere(texts, settings.own_kl_weight)


def as_scale(name: str, gain: NDArray[np.float64], record: dict[str, Any]) -> Intervention:
    """A `scale` intervention from gains, (L, F) float64: whatever differs from 1 is selected."""
    return Intervention(name, "scale", gain, np.zeros_like(gain), gain != 1, record=record)


def importance(lm: LM, edit: Intervention, base: NeuronMeans) -> NDArray[np.float64]:
    """How far an edit moves what each neuron writes on average: |change of its mean activation| *
    ||v_i||, (L, F) float64.
    """
    norms = [layer.value_vectors().double().norm(dim=1).cpu().numpy() for layer in lm.view.layers]
    moved: NDArray[np.float64] = np.abs(_mean_change(edit, base.means)) * np.stack(norms)
    return moved


def _mean_change(edit: Intervention, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((edit.gain - 1) * mean + edit.offset)


def relative_change(table: NeuronTable, edit: Intervention) -> NDArray[np.float64]:
    """By which share of itself an edit moves each neuron's mean activation, (L, F) float64: gain -
    1 where it scales, 0 where the mean is.
    """
    if edit.kind == "scale":
        return edit.gain - 1
    mean = table.grid("mean_base")
    return np.divide(_mean_change(edit, mean), mean, out=np.zeros_like(mean), where=mean != 0)


def by_group(table: NeuronTable, edit: Intervention, moved: NDArray[np.float64]) -> pl.DataFrame:
    """What gains, or another edit, do in each of the tuning-free groups: how many neurons, their
    mean change, and who follows the rule.

    The four-group rule (METHOD §4) dials TP and AN down and AP and TN up; `with_rule` is the share
    of a group's dialled neurons whose activation moves that way, `with_rule_weighted` the same with
    each neuron counting by `moved` (see `importance`).

    Args:
        table: of the base model along the direction that makes the groups.
        edit: an intervention of its shape.
        moved: (L, F), from `importance`.

    Returns:
        one row per group and one for `all`: `group`, `neurons`, `mean_change` (of the activation,
            relative: gain - 1), `mean_size` (of its
        absolute value), `share_moved`, `with_rule`, `with_rule_weighted`.
    """
    change = relative_change(table, edit)
    masks = table.groups(changed=False)
    down = np.logical_or(*(masks[name] for name in LESS))
    follows = np.where(down, change < 0, change > 0)
    rows = []
    for name, mask in [*masks.items(), ("all", np.logical_or.reduce([*masks.values()]))]:
        count, weight = int(mask.sum()), float(moved[mask].sum())
        dialled = mask & (change != 0)
        rows.append(
            {
                "group": name,
                "neurons": count,
                "mean_change": float(change[mask].mean()) if count else None,
                "mean_size": float(np.abs(change[mask]).mean()) if count else None,
                "share_moved": weight / float(moved.sum()) if weight else 0.0,
                "with_rule": float(follows[dialled].mean()) if dialled.any() else None,
                "with_rule_weighted": float(np.average(follows[mask], weights=moved[mask]))
                if weight
                else None,
            }
        )
    return pl.DataFrame(rows)


def keep_top(gains: Intervention, order: NDArray[np.float64], count: int) -> Intervention:
    """The gains of the `count` neurons that come first by `order` (L, F), highest first; every
    other neuron keeps its activation.
    """
    kept = np.zeros(order.size, dtype=bool)
    kept[np.argsort(-order.ravel(), kind="stable")[:count]] = True
    kept = kept.reshape(order.shape) & gains.selected
    gain = np.where(kept, gains.gain, 1.0)
    return replace(gains, name=f"{gains.name}_top_{count}", gain=gain, selected=kept)


def shuffled(edit: Intervention, *, seed: int) -> Intervention:
    """The control of gains: the same numbers, each layer's among its own neurons at random (METHOD
    §5).
    """
    order = np.random.default_rng(seed).permuted(
        np.broadcast_to(np.arange(edit.gain.shape[1]), edit.gain.shape), axis=1
    )
    return replace(
        edit,
        name=f"{edit.name}__random_neurons",
        gain=np.asarray(np.take_along_axis(edit.gain, order, axis=1)),
        offset=np.asarray(np.take_along_axis(edit.offset, order, axis=1)),
        selected=np.asarray(np.take_along_axis(edit.selected, order, axis=1)),
        control_of=edit.name,
        record={**edit.record, "seed": seed},
    )
