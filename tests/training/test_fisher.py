"""First-order prices and worths of gains, against float64 gradients written here, and the edit made
of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dialdown import DialdownError
from dialdown.data import Pair
from dialdown.models import LM
from dialdown.progress import progress_to
from dialdown.training import fisher_information, natural_gradient, own_text, preference_gradient
from helpers import tiny
from helpers.tiny import unchanged

SHAPE = (tiny.LAYERS, tiny.NEURONS)
PAIRS = (
    Pair("cat in the", " good", " very bad"),
    Pair("a", " kind and soft", " x"),
    Pair("why not", " warm", " vile and cruel"),
)
WINDOWS = [[5, 9, 3, 7, 1], [2, 8]]


@contextmanager
def gains_of(lm: LM) -> Iterator[tuple[torch.nn.Module, list[torch.Tensor]]]:
    """A float64 copy with one gain per neuron that has a gradient."""
    twin = lm.twin()
    twin.model.double().requires_grad_(False)
    gains = [
        torch.ones(tiny.NEURONS, dtype=torch.float64, requires_grad=True) for _ in twin.view.layers
    ]
    with ExitStack() as stack:
        for gain, layer in zip(gains, twin.view.layers, strict=True):
            hook = layer.linear.register_forward_pre_hook(
                lambda module, args, gain=gain: (args[0] * gain,)
            )
            stack.callback(hook.remove)
        yield twin.model, gains


def slope(total: torch.Tensor, gains: list[torch.Tensor]) -> np.ndarray:
    return np.stack(
        [gradient.numpy() for gradient in torch.autograd.grad(total, gains, retain_graph=True)]
    )


def log_probability(model: torch.nn.Module, tokenizer: Any, prompt: str, text: str) -> torch.Tensor:
    start, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + text)["input_ids"]
    log_probs = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
    return torch.stack([log_probs[at - 1, whole[at]] for at in range(len(start), len(whole))]).sum()


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_worth_of_a_gain_is_the_gradient_of_the_margin(named: LM, batch_size: int) -> None:
    with unchanged(named):
        gradient = preference_gradient(named, PAIRS, batch_size=batch_size)
    with gains_of(named) as (model, gains):
        margins = [
            log_probability(model, named.tokenizer, pair.prompt, pair.chosen)
            - log_probability(model, named.tokenizer, pair.prompt, pair.rejected)
            for pair in PAIRS
        ]
        expected = slope(torch.stack(margins).mean(), gains)
    np.testing.assert_allclose(gradient, expected, atol=2e-4 * np.abs(expected).max())


def test_a_continuation_may_end_where_the_context_does(gpt2: LM) -> None:
    assert np.isfinite(
        preference_gradient(gpt2, [Pair("x" * (tiny.CONTEXT - 1), "ab", "yz")])
    ).all()


def test_the_price_of_a_gain_is_the_curvature_of_the_kl(named: LM) -> None:
    """One position alone: there the expectation over its tokens can be taken exactly, and is the
    second derivative of the KL.
    """
    ids = [4]
    # How near a mean of draws comes is asked of one architecture; of the others, that the gains
    # stand where they belong.
    draws, near = (1000, 0.2) if named.name == "tiny-llama" else (100, 0.5)
    with unchanged(named):
        drawn = fisher_information(named, [ids], draws=draws)
    with gains_of(named) as (model, gains):
        log_probs = model(input_ids=torch.tensor([ids])).logits[0, 0].log_softmax(-1)
        exact = sum(
            float(log_probs[token].detach().exp()) * slope(log_probs[token], gains) ** 2
            for token in range(len(log_probs))
        )
        base = log_probs.detach()
        layer, neuron = np.unravel_index(int(np.argmax(exact)), SHAPE)
        step = 1e-3
        with torch.no_grad():
            gains[layer][neuron] += step
            moved = model(input_ids=torch.tensor([ids])).logits[0, 0].log_softmax(-1)
        kl = float((base.exp() * (base - moved)).sum())
    assert 0.5 * exact[layer, neuron] * step**2 == pytest.approx(kl, rel=1e-2)
    assert np.abs(drawn - exact).sum() < near * exact.sum()


def test_prices_are_means_over_positions_and_repeat_with_the_seed(llama: LM) -> None:
    whole = fisher_information(llama, WINDOWS, draws=3, seed=4)
    assert np.array_equal(whole, fisher_information(llama, WINDOWS, draws=3, seed=4))
    assert not np.array_equal(whole, fisher_information(llama, WINDOWS, draws=3, seed=5))
    # The first window is sampled first, so its own prices are part of the sum.
    first = fisher_information(llama, WINDOWS[:1], draws=3, seed=4)
    assert (whole * 7 >= first * 5 * (1 - 1e-9)).all()
    seen: list[int] = []
    with progress_to(lambda label, done, total: seen.append(done)):
        fisher_information(llama, WINDOWS)
    assert seen == [1, 2]


def test_own_text_starts_where_a_text_starts_and_repeats_with_the_seed(named: LM) -> None:
    before = torch.random.get_rng_state()
    texts = own_text(named, texts=3, tokens=7, seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [len(text) for text in texts] == [7] * 3
    assert {text[0] for text in texts} == {*(named.bos or [min(named.eos)])}
    assert texts == own_text(named, texts=3, tokens=7, seed=2)
    assert texts != own_text(named, texts=3, tokens=7, seed=3)
    assert {len(text) for text in own_text(named, texts=1, tokens=tiny.CONTEXT + 5)} == {
        named.context
    }


def test_own_text_is_drawn_from_the_whole_distribution(llama: LM) -> None:
    """The shares of the first tokens, and of those after the commonest of them, are the model's
    probabilities, ends of text aside.
    """
    texts = own_text(llama, texts=4000, tokens=3)
    start = llama.bos or [min(llama.eos)]
    first = np.bincount([text[1] for text in texts]).argmax()
    follow = [text[2] for text in texts if text[1] == first]
    for drawn, context in (([text[1] for text in texts], start), (follow, [*start, int(first)])):
        expected = tiny.logits(llama, torch.tensor([context]))[0, -1].double().softmax(-1).numpy()
        expected[[*llama.eos]] = 0
        expected /= expected.sum()
        shares = np.bincount(drawn, minlength=len(expected)) / len(drawn)
        # The summed distance of n draws from their distribution is below sqrt(2 * sum p (1 - p) / n
        # * tokens), roughly.
        assert (
            np.abs(shares - expected).sum()
            < 1.2 * np.sqrt(expected * (1 - expected) / len(drawn)).sum()
        )
        assert len(drawn) > 30


noise = np.random.default_rng(0).standard_normal(SHAPE)
prices = np.random.default_rng(1).gamma(0.5, size=SHAPE)


@settings(max_examples=20, deadline=None)
@given(kl=st.floats(1e-6, 1e-3), damping=st.floats(0.01, 10))
def test_the_natural_gradient_has_its_price_and_no_other_gains_at_that_price_are_worth_more(
    kl: float, damping: float
) -> None:
    edit = natural_gradient(tiny.lm("llama"), noise, prices, kl=kl, damping=damping)
    change = edit.gain - 1
    assert edit.record["clipped"] == 0
    assert 0.5 * (prices * change**2).sum() == pytest.approx(kl)
    assert edit.record["margin"] == pytest.approx((noise * change).sum())
    damped = prices + damping * prices.mean()
    spent = (damped * change**2).sum()
    for seed in range(5):
        other = change + 0.1 * np.abs(change).max() * np.random.default_rng(seed).standard_normal(
            SHAPE
        )
        other *= np.sqrt(spent / (damped * other**2).sum())
        assert (noise * other).sum() < (noise * change).sum()


def test_gains_of_a_large_step_stop_at_zero(llama: LM) -> None:
    edit = natural_gradient(llama, noise, prices, kl=100.0)
    assert edit.gain.min() == 0
    assert edit.record["clipped"] == (edit.gain == 0).sum() > 0


def test_following_preferences_raises_the_margin_as_predicted(llama: LM) -> None:
    edit = natural_gradient(
        llama, preference_gradient(llama, PAIRS), fisher_information(llama, WINDOWS), kl=1e-7
    )

    def margin(lm: LM) -> float:
        model: Any = lm.twin().model.double()
        with torch.no_grad():
            return float(
                np.mean(
                    [
                        log_probability(model, lm.tokenizer, pair.prompt, pair.chosen)
                        - log_probability(model, lm.tokenizer, pair.prompt, pair.rejected)
                        for pair in PAIRS
                    ]
                )
            )

    assert margin(edit.fold(llama)) - margin(llama) == pytest.approx(edit.record["margin"], rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"worth": noise[:1]}, r"`worth` has shape \(1, 24\)"),
        ({"information": prices[:, :2]}, r"`information` has shape"),
        ({"kl": 0.0}, r"with kl = 0\.0"),
        ({"kl": float("nan")}, "with kl = nan"),
        ({"damping": 0.0}, r"with damping = 0\.0"),
        ({"worth": np.zeros(SHAPE)}, "favours the preferred"),
    ],
)
def test_gains_that_cannot_be_made_are_refused(
    llama: LM, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DialdownError, match=message):
        natural_gradient(llama, **{"worth": noise, "information": prices, "kl": 0.01} | options)


def test_no_text_no_pairs_and_overflow_are_refused(llama: LM) -> None:
    with pytest.raises(DialdownError, match="no text to price"):
        fisher_information(llama, [])
    for ids in ([], [-1, 2], [1] * (llama.context + 1), [llama.view.unembedding.weight.shape[0]]):
        with pytest.raises(DialdownError, match=r"Text 1 is [\d,]+ token ids, and .* reads 1 to"):
            fisher_information(llama, [[1, 2], ids])
    with pytest.raises(DialdownError, match="no pairs to read"):
        preference_gradient(llama, [])
    broken = llama.twin()
    with torch.no_grad():
        broken.view.layers[0].linear.weight.fill_(float("inf"))
    for action in (
        lambda: preference_gradient(broken, PAIRS),
        lambda: fisher_information(broken, WINDOWS),
        lambda: own_text(broken),
    ):
        with pytest.raises(DialdownError, match="not finite"):
            action()
