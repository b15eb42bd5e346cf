"""Any binary concept: the probe as a scorer, the agreement of scorers, word lists, and the
sentiment example.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from sklearn.model_selection import train_test_split

import dialdown as dd
from dialdown.errors import DialdownError
from dialdown.evaluation.bootstrap import agreement
from dialdown.evaluation.probe_scorer import ProbeScorer
from dialdown.evaluation.token_judge import load_token_judge
from dialdown.interventions.intervention import Intervention
from dialdown.models.lm import LM
from dialdown.neurons.directions import Direction, token_contrast
from dialdown.study.config import load_config
from helpers import tiny

EXAMPLE = Path(__file__).parents[1] / "examples" / "sentiment" / "study.toml"

# --- The probe as a scorer


def texts_and_labels() -> tuple[list[str], list[int]]:
    """Texts of two kinds of letters, of many lengths, some longer than the probe reads."""
    rng = np.random.default_rng(0)
    labels = [*(np.arange(100) % 2)]
    letters = ("aeiou", "bcdfg")
    return [
        "".join(rng.choice([*letters[label]], size=rng.integers(1, 40))) for label in labels
    ], labels


@pytest.fixture(scope="module")
def scorer(llama: LM) -> ProbeScorer:
    return ProbeScorer(llama, dd.train_probe(llama, *texts_and_labels(), max_tokens=24, seed=1))


def reference(lm: LM, probe: Direction, text: str, max_tokens: int) -> float:
    """sigma(W x + b), one unpadded text in float64."""
    model = copy.deepcopy(lm.model).double()
    seen: list[torch.Tensor] = []
    model.model.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.inference_mode():
        model(input_ids=torch.tensor([lm.tokenizer(text)["input_ids"][:max_tokens]]))
    residual = seen[0][0].mean(0).numpy()
    return float(1 / (1 + np.exp(-(residual @ probe.vector + probe.record["intercept"]))))


def test_a_score_is_the_probes_probability(scorer: ProbeScorer) -> None:
    texts = ["a", "aeiou" * 9, "bcdfg bcdfg", " the cat", "é"]
    scores = scorer.score(texts)
    assert scores.dtype == np.float64
    expected = [reference(scorer.lm, scorer.direction, text, 24) for text in texts]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert len({*np.round(scores, 6)}) == len(texts)


def test_scores_reproduce_the_validation_of_the_probe(scorer: ProbeScorer) -> None:
    texts, labels = texts_and_labels()
    _, held = train_test_split(np.arange(100), test_size=0.1, stratify=labels, random_state=1)
    scores, truth = scorer.score([texts[row] for row in held]), np.array(labels)[held]
    assert np.mean((scores > 0.5) == truth) == scorer.direction.accuracy
    assert roc_auc_score(truth, scores) == pytest.approx(scorer.record["held_out_auc"])
    assert (
        scorer.record["held_out"],
        scorer.record["trained_on"],
        scorer.record["max_tokens"],
    ) == (10, 90, 24)


def test_the_probability_is_calibrated_by_the_intercept(llama: LM) -> None:
    """With nine texts out of ten of one class, the mean score is the share of that class, and not a
    half.
    """
    texts, _ = texts_and_labels()
    labels = [int(row % 10 > 0) for row in range(100)]
    probe = dd.train_probe(llama, texts, labels, max_tokens=24)
    assert ProbeScorer(llama, probe).score(texts).mean() == pytest.approx(0.9, abs=0.03)


def test_blank_texts_score_exactly_zero_wherever_they_stand(scorer: ProbeScorer) -> None:
    texts = ["", "aeiou", " \n\t", "bcdfg", ""]
    scores = scorer.score(texts)
    assert scores[[0, 2, 4]].tolist() == [0, 0, 0]
    np.testing.assert_allclose(scores[[1, 3]], scorer.score(["aeiou", "bcdfg"]))
    assert (scores[[1, 3]] > 0).all()
    assert scorer.score([]).shape == (0,)
    assert scorer.score([" "]).tolist() == [0]


def test_a_score_does_not_depend_on_the_other_texts(scorer: ProbeScorer) -> None:
    texts = [text for text, _ in zip(*texts_and_labels(), strict=True)][:50]
    alone = [float(scorer.score([text])[0]) for text in texts]
    np.testing.assert_allclose(scorer.score(texts), alone, atol=1e-5)


def test_a_saved_probe_scores_the_same(scorer: ProbeScorer, tmp_path: Path) -> None:
    scorer.direction.save(tmp_path / "probe.safetensors")
    again = ProbeScorer(scorer.lm, Direction.load(tmp_path / "probe.safetensors"))
    assert again.score(["the cat", "bcdfg"]).tolist() == scorer.score(["the cat", "bcdfg"]).tolist()
    assert again.record == scorer.record


def interventions(lm: LM, probe: Direction) -> list[Intervention]:
    shape = (lm.view.n_layers, lm.view.n_neurons)
    halved = Intervention(
        "half", "scale", np.full(shape, 0.5), np.zeros(shape), np.ones(shape, dtype=bool)
    )
    return [halved, dd.steer(probe, 2.0)]


@pytest.mark.parametrize("which", [0, 1])
def test_an_edited_model_is_no_judge(scorer: ProbeScorer, which: int) -> None:
    before = scorer.score(["the cat"])
    acting = interventions(scorer.lm, scorer.direction)[which]
    with (
        pytest.raises(DialdownError, match="intervention acts right now: score outside"),
        acting.applied(scorer.lm),
    ):
        scorer.score(["the cat"])
    assert scorer.score(["the cat"]).tolist() == before.tolist()


def test_only_a_strict_probe_with_an_intercept_scores(scorer: ProbeScorer, gpt2: LM) -> None:
    lm, probe = scorer.lm, scorer.direction
    for other in (
        dd.random_direction(lm),
        dd.token_contrast(lm, ["cat"], ["the"]),
        replace(probe, site="after_norm"),
    ):
        with pytest.raises(
            DialdownError, match="gives no probability: pass a probe of the strict protocol"
        ):
            ProbeScorer(lm, other)
    old = replace(
        probe, record={key: value for key, value in probe.record.items() if key != "intercept"}
    )
    with pytest.raises(DialdownError, match=r"without its intercept.*train it again"):
        ProbeScorer(lm, old)
    with pytest.raises(DialdownError, match=r"The probe has 8 dimensions .* tiny-gpt2 16"):
        ProbeScorer(gpt2, replace(probe, vector=probe.vector[:8]))


# --- Agreement

shares = st.integers(0, 4).map(lambda k: k / 4)  # few values, so that ties are common
two_scorers = st.integers(3, 25).flatmap(
    lambda n: st.tuples(
        st.lists(shares, min_size=n, max_size=n), st.lists(shares, min_size=n, max_size=n)
    )
)


def only_row(scores: dict[str, Sequence[float]], threshold: float = 0.5) -> dict[str, float | None]:
    """The one row of two scorers, with every warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = agreement(scores, threshold=threshold)
    (row,) = frame.to_dicts()
    return row


@settings(max_examples=60, deadline=None)
@given(two_scorers, st.sampled_from([0.2, 0.5, 0.75]))
def test_agreement_is_what_scipy_and_scikit_learn_say(
    scores: tuple[list[float], list[float]], threshold: float
) -> None:
    x, y = scores
    row = only_row({"a": x, "b": y}, threshold)
    a, b = np.array(x) > threshold, np.array(y) > threshold
    if len({*x}) == 1 or len({*y}) == 1:
        assert (row["spearman"], row["spearman_low"], row["spearman_high"]) == (None, None, None)
    else:
        assert row["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
        assert -1 - 1e-12 <= row["spearman_low"] <= row["spearman_high"] <= 1 + 1e-12
    if len({*a, *b}) == 1:
        assert row["kappa"] is None
    else:
        assert row["kappa"] == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)
    assert (row["both"], row["none"]) == (np.mean(a & b), np.mean(~a & ~b))
    assert row["one"] == pytest.approx(np.mean(a ^ b))
    assert row["n"] == len(x)


@settings(max_examples=20, deadline=None)
@given(two_scorers)
def test_agreement_is_symmetric_and_ranks_see_no_monotone_change(
    scores: tuple[list[float], list[float]],
) -> None:
    x, y = scores
    row, back = only_row({"a": x, "b": y}), only_row({"a": y, "b": x})
    bent = only_row({"a": [value**3 for value in x], "b": y})
    for column in ("spearman", "spearman_low", "spearman_high"):
        assert row[column] == pytest.approx(back[column], abs=1e-12)
        assert row[column] == bent[column]
    assert (row["kappa"], row["both"], row["one"]) == (back["kappa"], back["both"], back["one"])


def test_the_interval_is_the_percentile_bootstrap() -> None:
    rng = np.random.default_rng(5)
    x = rng.random(15).round(1)
    y = np.clip(x + rng.normal(0, 0.3, 15), 0, 1)
    draws = np.random.default_rng(0).integers(0, 15, size=(2000, 15))
    resampled = [stats.spearmanr(x[rows], y[rows]).statistic for rows in draws]
    row = only_row({"a": x, "b": y})
    expected = np.percentile(resampled, [2.5, 97.5])
    assert (row["spearman_low"], row["spearman_high"]) == pytest.approx(tuple(expected), abs=1e-12)


def test_a_text_without_a_number_is_left_out_of_its_pairs_only() -> None:
    nan = float("nan")
    scores = {
        "a": [0.1, nan, 0.9, 0.4, 0.8],
        "b": [0.2, 0.3, nan, 0.6, 0.7],
        "c": [0.3, 0.1, 0.8, 0.9, 0.2],
    }
    frame = agreement(scores)
    assert frame.select("first", "second", "n").rows() == [
        ("a", "b", 3),
        ("a", "c", 4),
        ("b", "c", 4),
    ]
    whole = only_row({"a": [0.1, 0.4, 0.8], "b": [0.2, 0.6, 0.7]})
    assert frame.row(0, named=True) == whole


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_texts_have_no_correlation(n: int) -> None:
    row = only_row({"a": [0.1, 0.9][:n], "b": [0.2, 0.8][:n]})
    assert (row["spearman"], row["spearman_low"], row["spearman_high"], row["n"]) == (
        None,
        None,
        None,
        n,
    )
    assert (row["both"], row["kappa"]) == {0: (None, None), 1: (0, None), 2: (0.5, 1)}[n]


def test_resamples_that_are_constant_leave_an_interval() -> None:
    """One text of many differs, so more than a third of the resamples lack it."""
    row = only_row({"a": [0.0] * 9 + [1.0], "b": [0.1] * 9 + [0.9]})
    assert (row["spearman"], row["spearman_low"], row["spearman_high"]) == pytest.approx((1, 1, 1))


def test_an_empty_frame_keeps_its_types() -> None:
    frame = agreement({"a": [], "b": []})
    assert frame.schema["spearman"] == pl.Float64
    assert frame.schema["n"] == pl.Int64


def test_what_cannot_agree_is_refused() -> None:
    with pytest.raises(DialdownError, match="needs two scorers and got 1"):
        agreement({"a": [0.1]})
    with pytest.raises(DialdownError, match=r"different numbers of texts .*'b': 1"):
        agreement({"a": [0.1, 0.2], "b": [0.1]})


# --- Word lists


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


# --- The example


def test_the_example_is_a_study_of_another_concept() -> None:
    config = load_config(file=EXAMPLE)
    assert config.concept == "negativity"
    assert config.evaluation.judge == "probe" != config.evaluation.pair_scorer
    assert (config.probe.texts, config.evaluation.prompts) == ("embedded:imdb", "embedded:imdb")
    assert len(config.probe.positive) == len(config.probe.negative) > 3


def test_the_examples_token_judge_knows_the_words_of_its_contrast() -> None:
    config = load_config(file=EXAMPLE)
    judge = load_token_judge(str(EXAMPLE.parents[2] / config.token_judge), concept=config.concept)
    assert set(judge.judge(config.probe.positive)) == {True}
    assert set(judge.judge(config.probe.negative)) == {False}


def test_the_examples_words_make_a_contrast(llama: LM) -> None:
    probe = load_config(file=EXAMPLE).probe
    assert token_contrast(llama, probe.positive, probe.negative).vector.shape == (tiny.WIDTH,)
