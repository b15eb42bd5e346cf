"""The probe as a scorer, against a plain forward pass."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

import dialdown as dd
from dialdown import DialdownError
from dialdown.evaluation.probe_scorer import ProbeScorer
from dialdown.interventions import Intervention
from dialdown.models import LM
from dialdown.neurons import Direction


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
