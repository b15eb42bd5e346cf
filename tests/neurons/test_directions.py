"""Directions against planted ones and plain loops; padding must never enter a strict mean (METHOD
§2, §5).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import dialdown as dd
from dialdown import DialdownError
from dialdown.models import LM
from dialdown.neurons import Direction, token_contrast
from dialdown.neurons.probe import fit_probe, probe_features
from dialdown.progress import progress_to
from helpers import tiny

PAPER_MODELS = ("gpt2", "llama", "mistral", "gemma2")


TEXTS = (
    "b c",
    "a",
    "Hello there, old friend",
    "the cat sat on the mat",
    "zebra",
    "Why?",
    "what is it to you, then",
)


def planted(
    n: int = 300, d: int = tiny.WIDTH, *, strength: float = 3.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features whose labels follow one direction, logistically, around an offset no direction
    should pick up.
    """
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(d)
    truth /= np.linalg.norm(truth)
    x = rng.standard_normal((n, d))
    y = (rng.random(n) < 1 / (1 + np.exp(-strength * x @ truth))).astype(int)
    return 40 * x + 100 * rng.standard_normal(d), y, truth


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def probe(llama: LM) -> Direction:
    x, y, _ = planted()
    return fit_probe(llama, x, y, protocol="strict")


def test_the_probe_finds_a_planted_direction(probe: Direction) -> None:
    """Its sign included: larger means more of label 1."""
    _, _, truth = planted()
    assert cosine(probe.vector, truth) > 0.97
    assert 0.75 < probe.accuracy < 1
    assert 0.85 < probe.record["auc"] < 1
    assert (probe.record["train"], probe.record["validation"]) == (270, 30)
    assert (probe.name, probe.site) == ("probe", "residual")


def test_the_probe_is_in_units_of_the_features(llama: LM, probe: Direction) -> None:
    """sigma(W x + b): the norm of W is what a logistic regression on the raw features gives, and
    always the same.
    """
    x, y, _ = planted()
    scale = np.sqrt(np.mean(x**2))
    # Regularisation C on features divided by s is C * s^2 on the raw ones; about that the fits
    # agree.
    raw = LogisticRegression(C=probe.record["C"] / scale**2, max_iter=20_000, tol=1e-8).fit(x, y)
    assert cosine(probe.vector, raw.coef_[0]) > 0.98
    assert np.linalg.norm(probe.vector) == pytest.approx(np.linalg.norm(raw.coef_[0]), rel=0.15)
    np.testing.assert_allclose(
        fit_probe(llama, 1000 * x, y, protocol="strict").vector, probe.vector / 1000, rtol=1e-3
    )


def test_accuracy_is_of_texts_that_were_not_fitted(llama: LM) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((200, 400)), np.arange(200) % 2
    # 400 dimensions separate 180 random texts perfectly; held-out ones are a coin toss.
    assert 0.2 < fit_probe(llama, x, y, protocol="strict").accuracy < 0.8


def test_another_seed_is_another_split(llama: LM, probe: Direction) -> None:
    x, y, _ = planted()
    other = fit_probe(llama, x, y, protocol="strict", seed=1)
    assert not np.array_equal(probe.vector, other.vector)
    assert cosine(probe.vector, other.vector) > 0.95
    assert (probe.record["seed"], other.record["seed"]) == (0, 1)


def naive_features(lm: LM, text: str, protocol: str, max_tokens: int) -> np.ndarray:
    """One text at a time: unpadded in float64 for `strict`, under `paper` after padding in front of
    it.
    """
    ids = lm.tokenizer(text)["input_ids"][:max_tokens]
    if protocol == "paper":
        padding = max_tokens - len(ids)
        given = {
            "input_ids": torch.tensor([[lm.tokenizer.eos_token_id] * padding + ids]),
            "attention_mask": torch.tensor([[0] * padding + [1] * len(ids)]),
        }
        with torch.inference_mode():
            last = copy.deepcopy(lm.model)(**given, output_hidden_states=True).hidden_states[-1]
        assert last.shape == (1, max_tokens, lm.view.d_model)
        return last[0].mean(0).numpy()
    model = copy.deepcopy(lm.model).double()
    norm = model.get_submodule(
        next(name for name, m in lm.model.named_modules() if m is lm.view.final_norm)
    )
    seen: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.inference_mode():
        model(input_ids=torch.tensor([ids]), use_cache=False)
    return seen[0][0].mean(0).numpy()


@pytest.mark.parametrize("max_tokens", [12, 40])
def test_features_are_those_of_each_text_alone(named: LM, max_tokens: int) -> None:
    got = probe_features(named, TEXTS, max_tokens=max_tokens, batch_size=3)
    for protocol in ("strict", "paper"):
        expected = np.stack([naive_features(named, text, protocol, max_tokens) for text in TEXTS])
        assert got[protocol].dtype == np.float64
        np.testing.assert_allclose(got[protocol], expected, atol=2e-4, rtol=2e-4)
        alone = probe_features(
            named, TEXTS, protocols=(protocol,), max_tokens=max_tokens, batch_size=1
        )[protocol]
        np.testing.assert_allclose(got[protocol], alone, atol=2e-4, rtol=2e-4)
    assert np.abs(got["strict"] - got["paper"]).max() > 0.1


@pytest.mark.parametrize("name", PAPER_MODELS)
@pytest.mark.parametrize("bos", [False, True])
def test_the_paper_probe_pads_left_with_the_end_of_text_token(name: str, bos: bool) -> None:
    """METHOD §5: to the maximal length, and the mean of what leaves the final norm is over all
    positions.
    """
    lm = tiny.lm(name, bos=bos)
    got = probe_features(lm, TEXTS, protocols=("paper",), max_tokens=20, batch_size=3)["paper"]
    expected = np.stack([naive_features(lm, text, "paper", 20) for text in TEXTS])
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-5)
    # The text that fills all positions has no padding to tell apart.
    full = LM.of(lm.model, tiny.tokenizer(bos=bos), name=lm.name)
    full.tokenizer.eos_token = "z"
    other = probe_features(full, TEXTS, protocols=("paper",), max_tokens=20)["paper"]
    padded = np.array([len(lm.tokenizer(text)["input_ids"]) < 20 for text in TEXTS])
    assert 0 < padded.sum() < len(TEXTS)
    np.testing.assert_allclose(other[~padded], got[~padded], atol=1e-5)
    assert np.abs(other - got)[padded].max(1).min() > 1e-2


def test_the_tokenizers_own_padding_token_changes_no_features(llama: LM) -> None:
    other = LM.of(llama.model, tiny.tokenizer(), name="tiny-llama")
    other.tokenizer.pad_token = "z"
    features = [probe_features(lm, TEXTS, max_tokens=40) for lm in (llama, other)]
    for protocol in ("strict", "paper"):
        np.testing.assert_allclose(features[0][protocol], features[1][protocol], atol=1e-5)


def test_a_tokenizer_without_an_end_of_text_token_has_no_paper_features() -> None:
    lm = tiny.lm("llama")
    lm.tokenizer.eos_token = None
    with pytest.raises(
        DialdownError, match=r"tiny-llama has no end-of-text token.*strict protocol"
    ):
        probe_features(lm, TEXTS, max_tokens=40)
    assert probe_features(lm, TEXTS, protocols=("strict",), max_tokens=40)["strict"].shape == (
        7,
        tiny.WIDTH,
    )


def newton(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Logistic regression with the penalty |w|^2 / 2 on the weights alone, to the minimum."""
    x1 = np.hstack([x, np.ones((len(x), 1))])
    penalty = np.diag([1.0] * x.shape[1] + [0.0])
    w = np.zeros(x1.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x1 @ w))
        w -= np.linalg.solve((x1.T * (p * (1 - p))) @ x1 + penalty, x1.T @ (p - y) + penalty @ w)
    return w[:-1], float(w[-1])


def test_the_paper_probe_is_a_plain_regression_on_features_as_they_are(llama: LM) -> None:
    """METHOD §5: C = 1, no scaling, a split by seed 42 that does not look at the labels, whatever
    the study's seed.
    """
    x, y, _ = planted()
    x = x / 40
    order = np.random.RandomState(42).permutation(len(y))
    held, train = order[:30], order[30:]
    w, b = newton(x[train], y[train])
    probe = fit_probe(llama, x, y, protocol="paper", seed=5)
    np.testing.assert_allclose(probe.vector, w, rtol=2e-3, atol=2e-3)
    assert probe.record["intercept"] == pytest.approx(b, rel=2e-3, abs=2e-3)
    assert probe.accuracy == pytest.approx(np.mean((x[held] @ w + b > 0) == y[held]))
    assert (probe.record["C"], probe.record["seed"], probe.site) == (1.0, 42, "after_norm")
    assert (probe.record["train"], probe.record["validation"]) == (270, 30)
    np.testing.assert_array_equal(fit_probe(llama, x, y, protocol="paper").vector, probe.vector)
    # Unscaled: in other units it is another regression, where `strict` finds the same one.
    assert cosine(fit_probe(llama, x / 100, y, protocol="paper").vector, probe.vector) < 0.999


def test_held_out_texts_of_one_label_have_no_auc(llama: LM) -> None:
    x = np.random.default_rng(0).standard_normal((200, 4))
    y = np.zeros(200, dtype=int)
    y[np.random.RandomState(42).permutation(200)[20:35]] = 1
    probe = fit_probe(llama, x, y, protocol="paper")
    assert probe.record["auc"] is None
    assert 0 <= probe.accuracy <= 1


def labelled() -> tuple[list[str], np.ndarray]:
    """Texts of two kinds of letters."""
    rng = np.random.default_rng(0)
    texts, labels = [], np.arange(60) % 2
    for label in labels:
        letters = "aeiou" if label else "bcdfg"
        texts.append("".join(rng.choice([*letters], size=rng.integers(3, 20))))
    return texts, labels


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_train_probe(llama: LM, protocol: Any) -> None:
    texts, labels = labelled()
    calls: list[Any] = []
    with progress_to(lambda *call: calls.append(call)):
        probe = dd.train_probe(
            llama, texts, [*labels], protocol=protocol, max_tokens=24, batch_size=16
        )
    features = probe_features(llama, texts, protocols=(protocol,), max_tokens=24)[protocol]
    score = features @ probe.unit
    assert score[labels == 1].mean() - score[labels == 0].mean() > score.std(), (
        "toxic texts must lie along +W"
    )
    assert probe.accuracy > 0.6
    assert probe.site == {"strict": "residual", "paper": "after_norm"}[protocol]
    assert (probe.record["protocol"], probe.record["max_tokens"]) == (protocol, 24)
    residual = probe_features(llama, texts, protocols=("strict",), max_tokens=24)["strict"]
    assert probe.record["residual_norm"] == pytest.approx(
        np.mean([np.linalg.norm(x) for x in residual]), rel=1e-5
    )
    before = [0] if protocol == "strict" else [0, 60]
    done = [start + read for start in before for read in (16, 32, 48, 60)]
    assert calls == [("reading labelled texts", count, done[-1]) for count in done]


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (["a"] * 20, [0] * 19, "20 texts and 19 labels"),
        (["a"] * 40, [1] * 40, r"contain only \[1\].*two classes"),
        (["a"] * 40, [0, 1, 2, 1] * 10, r"contain only \[0, 1, 2\]"),
        (["a"] * 40, [0] * 31 + [1] * 9, "31 and 9 texts, too few"),
        (["a"] * 19 + [""], [0, 1] * 10, "Labelled text 19 has no tokens"),
        ([], [], "two classes"),
    ],
)
def test_labels_a_probe_cannot_learn_from(
    llama: LM, texts: list[str], labels: list[int], message: str
) -> None:
    with pytest.raises(DialdownError, match=message):
        dd.train_probe(llama, texts, labels)


def test_texts_longer_than_the_context_are_refused(gpt2: LM) -> None:
    texts, labels = labelled()
    with pytest.raises(
        DialdownError, match=r"max_tokens=128 exceeds the context of tiny-gpt2 \(96\)"
    ):
        dd.train_probe(gpt2, texts, labels, protocol="paper")
    with pytest.raises(DialdownError, match="smaller max_tokens"):
        dd.train_probe(gpt2, [*texts[:-1], "x" * 100], labels)
    # Short texts are not padded under strict.
    assert probe_features(gpt2, texts, protocols=("strict",))["strict"].shape == (60, tiny.WIDTH)


def test_features_that_are_not_finite_are_refused() -> None:
    lm = tiny.lm("llama")
    with torch.no_grad():
        lm.model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(DialdownError, match=r"final-layer residuals of .* not finite"):
        probe_features(lm, TEXTS, max_tokens=40)


def test_token_contrast_averages_sub_tokens_then_words(named: LM) -> None:
    """Words of one token (" cat", " the") and of several weigh the same."""
    e = named.model.get_output_embeddings().weight.detach().double().numpy()
    v = tiny.VOCABULARY
    cat, the = e[v["Ġcat"]], e[v["Ġthe"]]
    ox = (
        e[v["o"]] + e[v["x"]]
    ) / 2  # the space is a token of its own here, and no part of the word
    to = (e[v["Ġt"]] + e[v["o"]]) / 2
    contrast = dd.token_contrast(named, ["cat", "ox"], ["the", "to"])
    np.testing.assert_allclose(
        contrast.vector, (cat + ox) / 2 - (the + to) / 2, rtol=1e-12, atol=1e-12
    )
    assert (contrast.name, contrast.site, contrast.accuracy) == ("contrast", "unembedding", None)
    np.testing.assert_allclose(
        dd.token_contrast(named, ["the", "to"], ["cat", "ox"]).vector, -contrast.vector
    )


@pytest.mark.parametrize("name", PAPER_MODELS)
def test_the_papers_seed_words_have_no_leading_space(name: str) -> None:
    lm = tiny.lm(name)
    e = lm.model.get_output_embeddings().weight.detach().double().numpy()
    v = tiny.VOCABULARY
    the = (e[v["t"]] + e[v["he"]]) / 2
    contrast = dd.token_contrast(lm, ["cat", " he "], ["the"], protocol="paper")
    np.testing.assert_allclose(
        contrast.vector, (e[v["cat"]] + e[v["he"]]) / 2 - the, rtol=1e-12, atol=1e-12
    )
    assert contrast.record["protocol"] == "paper"


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        ([], ["a"], "words on both sides"),
        (["a"], [], "words on both sides"),
        (["a", "b"], ["c", "b"], "'b' is on both sides"),
        (["a"], [" "], "' ' has no tokens"),
    ],
)
@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_words_that_make_no_contrast(
    llama: LM, positive: list[str], negative: list[str], message: str, protocol: Any
) -> None:
    with pytest.raises(DialdownError, match=message):
        dd.token_contrast(llama, positive, negative, protocol=protocol)


def test_the_random_direction_is_seeded_and_has_no_preferred_axis(llama: LM) -> None:
    vectors = np.stack([dd.random_direction(llama, seed=seed).vector for seed in range(200)])
    assert np.array_equal(vectors[3], dd.random_direction(llama, seed=3).vector)
    assert np.abs(vectors.mean(0)).max() < 0.4
    np.testing.assert_allclose(
        np.linalg.norm(vectors, axis=1).mean(), np.sqrt(tiny.WIDTH), rtol=0.1
    )


def test_save_and_load(tmp_path: Path, llama: LM) -> None:
    direction = dd.token_contrast(llama, ["cat"], ["the"])
    direction.save(tmp_path / "w.safetensors")
    again = Direction.load(tmp_path / "w.safetensors")
    assert np.array_equal(again.vector, direction.vector)
    assert again.vector.dtype == np.float64
    assert (again.name, again.site, again.record) == (
        direction.name,
        direction.site,
        direction.record,
    )
    np.testing.assert_allclose(np.linalg.norm(again.unit), 1)
    assert cosine(again.unit, again.vector) == pytest.approx(1)


@pytest.mark.parametrize("variant", ["cat", "Cat", " cat", "cat ", "CAT\n"])
def test_a_word_on_both_sides_is_noticed_however_it_is_written(llama: LM, variant: str) -> None:
    with pytest.raises(
        DialdownError, match="'cat' is on both sides of the contrast, case and spaces aside"
    ):
        token_contrast(llama, ["the", "cat"], [variant])


def test_spaces_around_a_word_change_nothing(llama: LM) -> None:
    plain, spaced = (
        token_contrast(llama, ["cat"], ["the"]),
        token_contrast(llama, [" cat "], ["the\n"]),
    )
    assert plain.vector.tolist() == spaced.vector.tolist()


@pytest.mark.parametrize("word", ["", " ", "\n", "<eos>"])
def test_a_word_that_is_no_text_is_refused(llama: LM, word: str) -> None:
    with pytest.raises(DialdownError, match="has no tokens in the vocabulary of tiny-llama"):
        token_contrast(llama, ["cat"], [word])
