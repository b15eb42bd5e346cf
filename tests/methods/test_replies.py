"""Labelled texts as a model with a chat template meets them: half said, half replied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import dialdown as dd
from dialdown import methods
from dialdown.methods.labelled import Contexts
from dialdown.models import LM
from helpers import chat_templates
from helpers.labelled import LABELS, TEXTS


@pytest.fixture(scope="module")
def lm() -> LM:
    return chat_templates.lm("chatml")


def naive(lm: LM, text: str) -> tuple[list[int], list[int]]:
    """Ids of what the user says with the template around it, and of the reply."""
    words = text.split()
    first, rest = words[: len(words) // 2], words[len(words) // 2 :]
    turn = [{"role": "user", "content": " ".join(first)}]
    tokenizer: Any = lm.tokenizer
    written = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    asked, whole = (
        tokenizer.encode(string, add_special_tokens=False)
        for string in (written, written + " ".join(rest))
    )
    return asked, whole[len(asked) :]


def test_the_first_half_is_asked_and_the_second_replied(lm: LM) -> None:
    contexts = Contexts.of(lm, TEXTS, 50)
    for text, ids, start in zip(TEXTS, contexts.ids, contexts.starts, strict=True):
        asked, reply = naive(lm, text)
        assert ids == asked + reply
        assert start == len(asked) - 1


def test_a_gain_is_worth_what_it_does_to_replies(lm: LM) -> None:
    worth = methods.labels_gradient(lm, TEXTS, LABELS)
    scores = methods.token_scores(lm, TEXTS, LABELS)
    twin = lm.twin()
    twin.model.double()

    def lowered(layer: int, neuron: int, gain: float) -> float:
        column = twin.view.layers[layer].columns[:, neuron]
        kept, expected = column.clone(), []
        with torch.inference_mode():
            column *= gain
            for text, label in zip(TEXTS, LABELS, strict=True):
                if label:
                    asked, reply = naive(lm, text)
                    logits = twin.model(torch.tensor([asked + reply])).logits[0, len(asked) - 1 :]
                    expected += (logits.softmax(-1).numpy() @ scores).tolist()
            column.copy_(kept)
        return -float(np.mean(expected))

    for layer, neuron in ((0, 0), (1, 5), (2, 17)):
        slope = (lowered(layer, neuron, 1.01) - lowered(layer, neuron, 0.99)) / 0.02
        assert worth[layer, neuron] == pytest.approx(slope, rel=1e-3, abs=1e-7)


def test_directions_are_learned_from_replies(lm: LM) -> None:
    edit = methods.labels_rank_one(lm, TEXTS, LABELS, steps=3)
    plain = dd.models.LM.of(lm.model, lm.tokenizer, template="none")
    assert edit.key != methods.labels_rank_one(plain, TEXTS, LABELS, steps=3).key


def test_a_template_that_leaves_no_room_is_refused(lm: LM) -> None:
    with pytest.raises(
        dd.DialdownError, match=r"with its chat template, and .* reads .*max_tokens"
    ):
        Contexts.of(lm, ["a " * 4 * lm.context], lm.context)
