"""What a user adds from outside the package: a scorer, a metric, an intervention, an
architecture.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dialdown as dd
from dialdown.evaluation import Row, load_metric
from dialdown.models import LM, MLPView, Projection
from helpers import tiny

SCORER = """
import numpy as np

class Shouting:
    name, caveat, record = "mine", "", {"made": "by hand"}

    def score(self, texts):
        return np.array([sum(map(str.isupper, text)) / max(len(text), 1) for text in texts])

nothing = 3

class Words:
    name = "words"

    def measure(self, prompts, continuations):
        return [len(text.split()) for text in continuations]

class Toxicity(Words):
    name = "toxicity"

class Short(Words):
    def measure(self, prompts, continuations):
        return []
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "scorers_of_mine.py").write_text(SCORER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "scorers_of_mine", raising=False)
    return "scorers_of_mine"


def test_a_scorer_is_named_in_a_setting(module: str) -> None:
    scorer = dd.load_scorer(f"{module}:Shouting")
    assert scorer.name == "mine"
    np.testing.assert_array_equal(scorer.score(["AB", "Ab", ""]), [1, 0.5, 0])


@pytest.mark.parametrize(
    ("name", "words"),
    [("Missing", "cannot be imported"), ("nothing", "is not a scorer, because it has no name")],
)
def test_what_is_no_scorer_is_refused(module: str, name: str, words: str) -> None:
    with pytest.raises(dd.DialdownError, match=words):
        dd.load_scorer(f"{module}:{name}")


def suite(*metrics: Any) -> dd.Suite:
    prompts = ["the cat", "a dog", "the"]
    judge = ProbeLike()
    return dd.Suite(prompts, [("the", " cat")], "the cat " * 40, [judge], window=8, metrics=metrics)


class ProbeLike:
    name, caveat, record = "likes cats", "", {}

    def score(self, texts: Sequence[str]) -> Any:
        return np.array([float("cat" in text) for text in texts])


def test_a_metric_arrives_in_every_row(module: str, llama: LM) -> None:
    edit = dd.Intervention("half", "scale", *halves(llama))
    rows = dd.evaluate(llama, [edit], suite(load_metric(f"{module}:Words")))
    for row in rows:
        words = [len(text.split()) for text in row.units.texts]
        assert row.units.values["words"] == words
        assert row.metrics["words"].mean == pytest.approx(np.mean(words))
        assert row.metrics["words"].n == 3
        assert Row.from_json(row.to_json()).metrics == row.metrics
    beside = rows[1].beside(rows[0], ["the cat", "a dog", "the"], samples=1)
    assert beside.change["words"] == rows[1].difference("words", rows[0])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Toxicity", "cannot be called 'toxicity'"),
        ("Short", r"'words' gave values of shape \(0,\)"),
        ("Shouting", "is not a metric, because it has no measure"),
        ("Missing", "metric .* cannot be imported"),
    ],
)
def test_what_is_no_metric_is_refused(module: str, llama: LM, name: str, words: str) -> None:
    with pytest.raises(dd.DialdownError, match=words):
        dd.evaluate(llama, [], suite(load_metric(f"{module}:{name}")))


def halves(lm: LM) -> tuple[Any, Any, Any]:
    shape = (lm.view.n_layers, lm.view.n_neurons)
    return np.full(shape, 0.5), np.zeros(shape), np.ones(shape, dtype=bool)


def test_an_intervention_is_a_gain_and_an_offset_per_neuron(llama: LM) -> None:
    halved = dd.Intervention("half", "scale", *halves(llama))
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode(), halved.applied(llama):
        hooked = llama.model(ids).logits
    with torch.inference_mode():
        folded = halved.fold(llama).model(ids).logits
        plain = llama.model(ids).logits
    torch.testing.assert_close(hooked, folded)
    assert not torch.allclose(hooked, plain)


def test_a_model_in_memory_is_used_as_it_is() -> None:
    model = tiny.model("llama")
    lm = dd.load(model, tokenizer=tiny.tokenizer())
    assert lm.model is model
    assert lm.view.n_neurons == tiny.NEURONS
    assert dd.mean_activations(lm, ["the cat"], max_new_tokens=2).means.shape == (3, tiny.NEURONS)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "has no tokenizer with it"),
        ({"tokenizer": tiny.tokenizer(), "dtype": "bfloat16"}, "dtype='bfloat16' has no effect"),
    ],
)
def test_a_model_in_memory_needs_its_tokenizer_alone(given: Any, words: str) -> None:
    with pytest.raises(dd.DialdownError, match=words):
        dd.load(tiny.model("llama"), **given)


def test_what_wraps_a_model_is_refused() -> None:
    wrapped: Any = torch.nn.Sequential(tiny.model("llama"))
    with pytest.raises(dd.DialdownError, match="Sequential is not a transformers model"):
        dd.load(wrapped, tokenizer=tiny.tokenizer())
    with pytest.raises(dd.DialdownError, match="with its own tokenizer"):
        dd.load("embedded:smollm2-135m", tokenizer=tiny.tokenizer())


def test_an_architecture_is_a_view_described_as_data(llama: LM) -> None:
    """A model whose modules have names of their own needs no code in the package."""
    model = llama.model
    layers = tuple(
        Projection(f"model.layers.{index}.mlp.down_proj", layer.mlp.down_proj)
        for index, layer in enumerate(model.model.layers)
    )
    described = LM(model, llama.tokenizer, MLPView(layers, model.model.norm, model.lm_head), "mine")
    expected, means = (
        dd.mean_activations(lm, ["the cat", "a dog"], max_new_tokens=3) for lm in (llama, described)
    )
    np.testing.assert_array_equal(expected.means, means.means)
