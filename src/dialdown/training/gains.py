"""Neuron gains: the DPO loss with nothing trainable but one number per neuron, an ordinary `scale`
intervention (METHOD §7, §8).

    information = fisher_information(lm, own_text(lm))
    texts = own_text(lm, texts=96, tokens=64, seed=1)
    gains, log = train_gains(
        lm, pairs, GainSettings(), Path("gains"), information=information, texts=texts
    )
    plain = gains.fold(lm)

One gain per neuron is exactly IA3 on the input of the MLP's down projection, so PEFT makes the
parameters and TRL trains them as it trains a whole model in `dpo`. No weight has a gradient, and
the reference and the policy share all of them. A step follows the natural gradient: it goes where
the loss falls most for what it costs elsewhere (see `fisher`). The Fisher diagonal prices each gain
by itself, and the KL of all gains together is several times as large: so that KL, measured on other
text that the model wrote, is part of the loss too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.pytorch_utils import Conv1D

from ..data.pairs import Pair
from ..errors import DialdownError
from ..extras import asking_for
from ..interventions.explain import as_scale
from ..interventions.intervention import Intervention
from ..models.hooks import check_alone
from ..models.lm import LM, sharing
from . import ranks
from .dpo import tune
from .fisher import NaturalGradientOptimizer, damped
from .generated_text import own_text_kl
from .policies import Trainable
from .settings import GAINS_FILE, GainSettings, TrainingLog


def train_gains(
    lm: LM,
    pairs: Sequence[Pair],
    settings: GainSettings,
    out: str | Path,
    *,
    information: NDArray[np.float64] | None = None,
    texts: Sequence[Sequence[int]] = (),
) -> tuple[Intervention, TrainingLog]:
    """Train one gain per neuron of `lm` on `pairs` and write them to the folder `out` (METHOD §8).

    They are float32 whatever the model's dtype. The same call resumes (see `train_dpo`).

    Args:
        lm: the model and reference, left untouched.
        pairs, settings, out: see `train_dpo`.
        information: (L, F), from `fisher_information`; the natural gradient needs it.
        texts: token ids of one length, from `own_text` with another seed than the texts of
            `information`; `own_kl_weight` needs them.

    Returns:
        a `scale` intervention of all neurons, and what happened in training.

    Raises:
        DialdownError: the natural gradient without `information` of this model; a KL on no texts;
            see `train_dpo`.
    """
    check_alone(lm, "trained")
    if ranks.wanted(settings):
        given: dict[str, Any] = {"information": information, "texts": texts}
        return ranks.on_ranks_of(
            lm, train_gains, settings, pairs=[*pairs], out=Path(out).resolve(), **given
        )
    prices = _prices(lm, settings, information) if settings.optimizer == "natural" else None
    own_kl = own_text_kl(lm, texts, settings.own_kl_weight)

    def save(policy: Any, folder: Path) -> None:
        rows = [gain.detach().flatten().double().cpu() for gain in _parameters(lm, policy)]
        record = {"base": lm.describe(), "pairs": len(pairs)}
        as_scale("neuron_gains", torch.stack(rows).numpy(), record).save(folder / GAINS_FILE)

    def natural(policy: Any) -> NaturalGradientOptimizer:
        assert prices is not None
        by_gain = zip(_parameters(lm, policy), map(torch.as_tensor, prices), strict=True)
        priced = [(gain, price.to(gain).view_as(gain)) for gain, price in by_gain]
        return NaturalGradientOptimizer(priced, settings.learning_rate)

    gains = Trainable(
        lm.model,
        lm.tokenizer,
        prepare=lambda model: _with_gains(lm, model),
        save=save,
        # Gain, offset and mask.
        result_bytes=17 * lm.view.n_layers * lm.view.n_neurons,
        optimizer=natural if prices is not None else None,
        given=[prices],
        template=lm.template,
    )
    log = tune(gains, pairs, settings, out, own_kl=own_kl)
    return Intervention.load(Path(out) / GAINS_FILE), log


def _with_gains(lm: LM, model: Any) -> Any:
    """A PEFT model that shares all weights of `model` and has a trainable gain on every neuron."""
    with asking_for("Training neuron gains, IA3 parameters,"):
        from peft import IA3Config, get_peft_model
    paths = [layer.path for layer in lm.view.layers]
    config = IA3Config(
        target_modules=paths,
        feedforward_modules=paths,
        fan_in_fan_out=isinstance(lm.view.layers[0].linear, Conv1D),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(sharing(model), config)


def _parameters(lm: LM, policy: Any) -> list[torch.Tensor]:
    """The gains of each layer of a policy from `_with_gains`."""
    base = policy.get_base_model()
    return [base.get_submodule(layer.path).ia3_l["default"] for layer in lm.view.layers]


def _prices(
    lm: LM, settings: GainSettings, information: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    shape = lm.view.shape
    if information is None or information.shape != shape:
        raise DialdownError(
            f"The natural gradient needs the price of each of the {shape[0]} x {shape[1]} gains of "
            f"{lm.name}: pass information=fisher_information(lm, own_text(lm))."
        )
    return damped(information, settings.damping)
