"""An edited folder is an ordinary model to lm-eval: its scores are those of the hooked model,
computed here by hand.
"""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dialdown as dd
from dialdown.interventions import Intervention
from dialdown.models import LM
from helpers import tiny

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install -e '.[eval]'")

QUESTIONS = [
    ("The opposite of hot is", ["cold", "green", "seven", "loud"], 0),
    ("A cat says", ["moo", "meow", "hello", "blue"], 1),
    ("Two plus two is", ["nine", "red", "four", "one"], 2),
    ("The sky is", ["salty", "square", "angry", "blue"], 3),
    ("Fish live in", ["water", "trees", "books", "fire"], 0),
    ("Bread is made from", ["glass", "flour", "steel", "smoke"], 1),
]
TEXTS = [
    "The old man walked slowly along the river and sat down.",
    "It rained all day, so we stayed at home and read.",
]
CHOICE = """
task: tiny_choice
output_type: multiple_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}/choice.jsonl"}}, cache_dir: "{data}/cache"}}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""
TEXT = """
task: tiny_text
output_type: loglikelihood_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}/text.jsonl"}}, cache_dir: "{data}/cache"}}
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}]
"""


@pytest.fixture(
    scope="module", params=["tiny", pytest.param("smollm2-135m", marks=pytest.mark.embedded)]
)
def lm(request: pytest.FixtureRequest) -> LM:
    return (
        tiny.lm("llama")
        if request.param == "tiny"
        else dd.load(f"embedded:{request.param}", device="cpu")
    )


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with two tasks and their data; nothing comes from a hub."""
    rows = [
        {"question": question, "choices": choices, "answer": answer}
        for question, choices, answer in QUESTIONS
    ]
    for name, yaml, lines in (
        ("choice", CHOICE, rows),
        ("text", TEXT, [{"text": text} for text in TEXTS]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        (tmp_path / f"{name}.yaml").write_text(yaml.format(data=tmp_path))
    return tmp_path


def scale(lm: LM) -> Intervention:
    """Enough to change answers, too little to break the embedded model."""
    rng = np.random.default_rng(0)
    gain = 1 + 0.5 * rng.standard_normal((lm.view.n_layers, lm.view.n_neurons))
    return Intervention("it", "scale", gain, np.zeros_like(gain), np.ones_like(gain, dtype=bool))


def saved(lm: LM, folder: Path) -> Path:
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def lm_eval_scores(folder: Path, tasks: Path) -> tuple[float, float, list[list[float]]]:
    """Accuracy, word perplexity and the log-likelihood of every choice, by `lm_eval --model hf`."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    output: Any = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32"},
        tasks=["tiny_choice", "tiny_text"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        batch_size=4,
        device="cpu",
        bootstrap_iters=0,
    )
    samples = sorted(output["samples"]["tiny_choice"], key=lambda sample: sample["doc_id"])
    likelihoods = [
        [float(response[0]) for response in sample["filtered_resps"]] for sample in samples
    ]
    results = output["results"]
    return (
        results["tiny_choice"]["acc,none"],
        results["tiny_text"]["word_perplexity,none"],
        likelihoods,
    )


def direct_scores(lm: LM, edit: Intervention | None) -> tuple[float, float, list[list[float]]]:
    """The same three by hand, one text at a time, on the model as it is in memory."""
    with edit.applied(lm) if edit else nullcontext():
        likelihoods = [
            [_likelihood(lm, question, f" {choice}") for choice in choices]
            for question, choices, _ in QUESTIONS
        ]
        total = sum(_likelihood(lm, "", text) for text in TEXTS)
    right = [
        int(np.argmax(row)) == answer
        for row, (*_, answer) in zip(likelihoods, QUESTIONS, strict=True)
    ]
    words = sum(len(text.split()) for text in TEXTS)
    return sum(right) / len(right), math.exp(-total / words), likelihoods


def _likelihood(lm: LM, before: str, text: str) -> float:
    """log p(text | before), summed over tokens; a text with nothing before it follows the BOS."""
    given = lm.tokenizer(before)["input_ids"] if before else [lm.tokenizer.bos_token_id]
    new = lm.tokenizer(before + text)["input_ids"][len(given) if before else 0 :]
    logits = (
        tiny.logits(lm, torch.tensor([[*given, *new]], device=lm.device))[0]
        .double()
        .log_softmax(-1)
    )
    return sum(float(logits[len(given) - 1 + place, token]) for place, token in enumerate(new))


def test_lm_eval_scores_an_edited_folder_as_the_hooked_model(
    lm: LM, tasks: Path, tmp_path: Path
) -> None:
    edit = scale(lm)
    base = saved(lm, tmp_path / "base")
    scores = {}
    for name, folder, hooked in (
        ("base", base, None),
        ("edited", dd.export(base, edit, tmp_path / "edited").folder, edit),
    ):
        accuracy, perplexity, likelihoods = scores[name] = lm_eval_scores(folder, tasks)
        expected = direct_scores(lm, hooked)
        np.testing.assert_allclose(likelihoods, expected[2], atol=1e-3)
        assert accuracy == pytest.approx(expected[0])
        assert perplexity == pytest.approx(expected[1], rel=1e-4)
    assert np.abs(np.subtract(scores["base"][2], scores["edited"][2])).max() > 0.1
    assert scores["base"][1] != pytest.approx(scores["edited"][1], rel=1e-2)
