"""Neuron gains on tiny random models: what is trained, against a float64 gradient written here, and
what comes out (METHOD §8).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import dialdown as dd
from dialdown import DialdownError
from dialdown.data import Pair
from dialdown.models import LM
from dialdown.progress import progress_to
from dialdown.training import GainSettings, fisher_information, train_gains
from dialdown.training.settings import GAINS_FILE
from helpers import tiny
from helpers.pairs import PAIRS, TEXTS, log_probability
from helpers.tables import SHAPE

QUICK = GainSettings(learning_rate=5e-3, batch_size=2, epochs=2, eval_every=100, eval_pairs=1)


PRICES = np.random.default_rng(3).gamma(1.0, 1e-3, SHAPE)


def loss_gradient(
    lm: LM,
    pairs: list[Pair],
    beta: float,
    *,
    at: np.ndarray | None = None,
    texts: Any = (),
    weight: float = 0.0,
) -> np.ndarray:
    """The gradient of plain DPO, and of a weight times the KL from the base on texts, by one gain
    per neuron, in float64.
    """
    twin = lm.twin()
    twin.model.double().requires_grad_(False)
    start = np.ones(SHAPE) if at is None else at
    gains = [torch.tensor(row, requires_grad=True) for row in start]
    base = lm.twin().model.double()
    for gain, layer in zip(gains, twin.view.layers, strict=True):
        layer.linear.register_forward_pre_hook(lambda module, args, gain=gain: (args[0] * gain,))
    total = torch.zeros((), dtype=torch.float64)
    for pair in pairs:
        margin = torch.zeros((), dtype=torch.float64)
        for sign, text in ((1, pair.chosen), (-1, pair.rejected)):
            ratio = log_probability(twin.model, lm.tokenizer, pair, text)
            margin = margin + sign * (
                ratio - log_probability(base, lm.tokenizer, pair, text).detach()
            )
        total = total - F.logsigmoid(beta * margin) / len(pairs)
    for text in texts:
        p, q = (
            m(input_ids=torch.tensor([text])).logits[0].log_softmax(-1) for m in (base, twin.model)
        )
        total = total + weight * (p.exp() * (p - q)).sum(-1).mean().div(len(texts))
    total.backward()
    return np.stack([gain.grad.numpy() for gain in gains])


def choices(lm: LM, beta: float) -> list[tuple[list[Pair], np.ndarray]]:
    """The pairs trained on and their gradient at gains of one, for each pair that may be the one
    held out, which is drawn.
    """
    each = [loss_gradient(lm, [pair], beta) for pair in PAIRS]
    return [
        ([*PAIRS[:out], *PAIRS[out + 1 :]], np.mean([*each[:out], *each[out + 1 :]], axis=0))
        for out in range(len(PAIRS))
    ]


@pytest.mark.parametrize("optimizer", ["natural", "adamw"])
def test_the_first_step_goes_against_the_gradient_of_the_loss(
    named: LM, tmp_path: Path, optimizer: Any
) -> None:
    settings = GainSettings(
        optimizer=optimizer,
        kl_weight=0,
        learning_rate=1e-3,
        batch_size=6,
        max_steps=1,
        eval_pairs=1,
        max_grad_norm=1e9,
    )
    gains, log = train_gains(
        named, PAIRS, settings, tmp_path / "gains", information=PRICES, texts=TEXTS
    )
    assert log.steps == 1
    moved = gains.gain - 1
    price = PRICES + settings.damping * PRICES.mean()
    agrees = []
    for _, gradient in choices(named, settings.beta):
        large = np.abs(gradient) > 1e-3 * np.abs(gradient).max()
        if optimizer == "adamw":
            agrees.append(bool((np.sign(moved[large]) == -np.sign(gradient[large])).all()))
        else:
            step = -1e-3 * (gradient / price) / np.sqrt((gradient**2 / price).sum())
            # Gains are float32 numbers around 1, so a step is known to within their rounding.
            agrees.append(np.allclose(moved, step, rtol=1e-3, atol=2e-7))
    assert any(agrees)
    if optimizer == "adamw":
        # Adam's first step has the length of the learning rate wherever there is a gradient.
        assert np.abs(moved).max() == pytest.approx(1e-3, rel=1e-3)
    else:
        assert np.sqrt((price * moved**2).sum()) == pytest.approx(1e-3, rel=1e-2)


def test_the_second_step_goes_against_the_kl_on_the_second_texts_too(
    named: LM, tmp_path: Path
) -> None:
    # So that either part of the loss counts about as much in the gradient.
    weight, length = 0.5, 0.05
    settings = GainSettings(
        own_kl_weight=weight,
        kl_weight=0,
        learning_rate=length,
        batch_size=6,
        eval_pairs=1,
        max_grad_norm=1e9,
    )
    after = [
        train_gains(
            named,
            PAIRS,
            replace(settings, max_steps=steps),
            tmp_path / str(steps),
            information=PRICES,
            texts=TEXTS,
        )[0].gain
        for steps in (1, 2)
    ]
    price = PRICES + settings.damping * PRICES.mean()

    def off(moved: np.ndarray, gradient: np.ndarray) -> float:
        """How far a step is from the natural gradient's, as a share of its length."""
        expected = -length * (gradient / price) / np.sqrt((gradient**2 / price).sum())
        return float(np.sqrt((price * (moved - expected) ** 2).sum()) / length)

    # At the first step the KL has no gradient yet, so it tells which pair was held out.
    pairs, gradient = min(
        choices(named, settings.beta), key=lambda choice: off(after[0] - 1, choice[1])
    )
    assert off(after[0] - 1, gradient) < 1e-3
    second = after[1] - after[0]

    def off_with(texts: Any, weight: float) -> float:
        return off(
            second,
            loss_gradient(named, pairs, settings.beta, at=after[0], texts=texts, weight=weight),
        )

    texts = [TEXTS[4], TEXTS[5], TEXTS[0], TEXTS[1]]
    assert off_with(texts, weight) < 1e-3
    for other, share in ((TEXTS[:4], 1), (texts, 0), (texts, 0.8), (texts, 1.25)):
        assert off_with(other, share * weight) > 4e-3


def test_training_lowers_the_loss_and_leaves_the_model_alone(named: LM, tmp_path: Path) -> None:
    prices = fisher_information(named, [[5, 9, 3, 7, 1, 4, 4, 2]])
    gains, log = train_gains(
        named, PAIRS, replace(QUICK, epochs=4), tmp_path / "gains", information=prices, texts=TEXTS
    )
    assert gains.kind == "scale"
    assert gains.gain.shape == (tiny.LAYERS, tiny.NEURONS)
    assert not gains.offset.any()
    # Batches differ among themselves; a whole epoch has the same pairs each time.
    first, *_, last = np.split(np.array(log.loss), 4)
    assert last.mean() < first.mean()
    assert log.dpo_loss[0] == pytest.approx(np.log(2), abs=1e-6)

    def margin(model: torch.nn.Module) -> float:
        with torch.no_grad():
            return float(
                sum(
                    log_probability(model, named.tokenizer, pair, pair.chosen)
                    - log_probability(model, named.tokenizer, pair, pair.rejected)
                    for pair in PAIRS
                )
            )

    assert margin(gains.fold(named).model) > margin(named.model)


def test_the_same_call_returns_what_is_there_and_is_reproducible(llama: LM, tmp_path: Path) -> None:
    first, _ = train_gains(llama, PAIRS, QUICK, tmp_path / "a", information=PRICES, texts=TEXTS)
    stamp = (tmp_path / "a" / GAINS_FILE).stat().st_mtime_ns
    again, _ = train_gains(llama, PAIRS, QUICK, tmp_path / "a", information=PRICES, texts=TEXTS)
    assert (tmp_path / "a" / GAINS_FILE).stat().st_mtime_ns == stamp
    other, _ = train_gains(llama, PAIRS, QUICK, tmp_path / "b", information=PRICES, texts=TEXTS)
    np.testing.assert_array_equal(first.gain, again.gain)
    np.testing.assert_array_equal(first.gain, other.gain)
    cheaper, _ = train_gains(
        llama, PAIRS, QUICK, tmp_path / "a", information=PRICES[::-1].copy(), texts=TEXTS
    )
    assert not np.array_equal(first.gain, cheaper.gain)


def test_a_stopped_training_goes_on_to_the_same_gains(llama: LM, tmp_path: Path) -> None:
    settings = GainSettings(learning_rate=2e-2, batch_size=1, epochs=2, eval_every=2, eval_pairs=1)
    whole, _ = train_gains(
        llama, PAIRS, settings, tmp_path / "whole", information=PRICES, texts=TEXTS
    )

    class Stopped(Exception):  # noqa: N818  (it is not an error but a key press)
        pass

    def stop(label: str, done: int, total: int) -> None:
        if done == 5:
            raise Stopped

    with pytest.raises(Stopped), progress_to(stop):
        train_gains(llama, PAIRS, settings, tmp_path / "stopped", information=PRICES, texts=TEXTS)
    steps: list[int] = []
    with progress_to(lambda label, done, total: steps.append(done)):
        resumed, log = train_gains(
            llama, PAIRS, settings, tmp_path / "stopped", information=PRICES, texts=TEXTS
        )
    assert steps[0] == 4
    assert log.steps == 10
    np.testing.assert_array_equal(whole.gain, resumed.gain)


def test_gains_of_a_16_bit_model_are_not_rounded_to_16_bits(tmp_path: Path) -> None:
    lm = tiny.lm("llama")
    lm.model.bfloat16()
    gains, _ = train_gains(
        lm,
        PAIRS,
        GainSettings(learning_rate=1e-6, batch_size=2, eval_pairs=1),
        tmp_path / "gains",
        information=PRICES,
        texts=TEXTS,
    )
    # The nearest bfloat16 numbers to 1 are further away than that.
    assert 0 < np.abs(gains.gain - 1).max() < 2**-9
    assert lm.model.dtype == torch.bfloat16


def test_the_natural_gradient_needs_prices(llama: LM, tmp_path: Path) -> None:
    for prices in (None, PRICES[:1]):
        with pytest.raises(DialdownError, match="information=fisher_information"):
            train_gains(llama, PAIRS, QUICK, tmp_path / "gains", information=prices, texts=TEXTS)
    with pytest.raises(DialdownError, match="with damping = 0"):
        replace(QUICK, damping=0.0)
    with pytest.raises(DialdownError, match="or train neuron gains"):
        dd.DPOSettings(optimizer="natural")


def test_a_kl_on_text_needs_texts_of_one_length(llama: LM, tmp_path: Path) -> None:
    for texts in ([], [[1, 2], [3]]):
        with pytest.raises(DialdownError, match="or own_kl_weight=0"):
            train_gains(llama, PAIRS, QUICK, tmp_path / "gains", information=PRICES, texts=texts)
    for weight in (-1.0, float("nan")):
        with pytest.raises(DialdownError, match=r"own_kl_weight = (-1|nan)"):
            replace(QUICK, own_kl_weight=weight)
    without = replace(QUICK, own_kl_weight=0.0)
    train_gains(llama, PAIRS, without, tmp_path / "gains", information=PRICES)


def test_the_log_has_the_kl_on_text_and_validation_leaves_it_out(llama: LM, tmp_path: Path) -> None:
    far = replace(QUICK, learning_rate=0.5, eval_every=100)
    _, log = train_gains(llama, PAIRS, far, tmp_path / "with", information=PRICES, texts=TEXTS)
    assert len(log.kl_own) == log.steps
    assert log.kl_own[0] == pytest.approx(0, abs=1e-6)
    assert log.kl_own[-1] > 1e-3
    without = replace(far, own_kl_weight=0.0)
    _, plain = train_gains(llama, PAIRS, without, tmp_path / "without", information=PRICES)
    assert plain.kl_own == ()
    # With a negligible weight the training and the validation loss are the same.
    light = replace(far, own_kl_weight=1e-9)
    _, nearly = train_gains(
        llama, PAIRS, light, tmp_path / "light", information=PRICES, texts=TEXTS
    )
    np.testing.assert_allclose(nearly.eval_loss, plain.eval_loss, rtol=1e-4)
    assert nearly.kl_own[-1] > 1e-3


def test_texts_that_cannot_be_read_are_refused(llama: LM, tmp_path: Path) -> None:
    beyond = llama.view.unembedding.weight.shape[0]
    for texts in ([[], []], [[1] * (llama.context + 1)], [[1, beyond]], [[-1, 2]]):
        with pytest.raises(
            DialdownError, match=r"Text [01] is [\d,]+ token ids, and .* reads 1 to"
        ):
            train_gains(llama, PAIRS, QUICK, tmp_path / "gains", information=PRICES, texts=texts)
    with pytest.raises(DialdownError, match=r"of lengths \[1, 2\] were given, .* of one length"):
        train_gains(
            llama, PAIRS, QUICK, tmp_path / "gains", information=PRICES, texts=[[1], [1, 2]]
        )


@pytest.mark.filterwarnings("error::FutureWarning")
def test_what_libraries_will_rename_is_no_business_of_who_trains(llama: LM, tmp_path: Path) -> None:
    train_gains(
        llama,
        PAIRS,
        replace(QUICK, max_steps=1),
        tmp_path / "gains",
        information=PRICES,
        texts=TEXTS,
    )


def test_too_few_pairs_are_refused(llama: LM, tmp_path: Path) -> None:
    with pytest.raises(DialdownError, match="pass at least 4 pairs"):
        train_gains(llama, PAIRS[:2], QUICK, tmp_path / "gains", information=PRICES, texts=TEXTS)
