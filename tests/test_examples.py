"""The sentiment example: another concept by settings alone."""

from __future__ import annotations

from dialdown.evaluation import load_token_judge
from dialdown.models import LM
from dialdown.neurons import token_contrast
from dialdown.study import load_config
from helpers import tiny
from helpers.repository import EXAMPLES

EXAMPLE = EXAMPLES / "sentiment" / "study.toml"


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
