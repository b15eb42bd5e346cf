"""Texts and labels in a shape that would be read as something else are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dialdown as dd
from dialdown import DialdownError
from dialdown.models import LM


def test_a_column_of_labels_and_one_text_are_refused(llama: LM) -> None:
    texts = [f"a cat {number}" for number in range(20)]
    labels = np.arange(20) % 2
    with pytest.raises(DialdownError, match=r"labels have shape \(20, 1\).* flat list"):
        dd.train_probe(llama, texts, labels[:, None])
    for read in (
        lambda: dd.train_probe(llama, "a" * 20, labels),
        lambda: dd.mean_activations(llama, "themancat"),
        lambda: dd.token_contrast(llama, "cat", ["dog"]),
    ):
        with pytest.raises(DialdownError, match="One text was given where a list of texts belongs"):
            read()
    with pytest.raises(DialdownError, match="max_tokens=-1 leaves nothing to do"):
        dd.train_probe(llama, texts, labels, max_tokens=-1)


def test_an_unknown_protocol_is_one_sentence(llama: LM) -> None:
    texts, labels = [f"a cat {number}" for number in range(20)], [0, 1] * 10
    for read in (
        lambda: dd.mean_activations(llama, texts, protocol="Strict"),
        lambda: dd.train_probe(llama, texts, labels, protocol="Strict"),
        lambda: dd.token_contrast(llama, ["cat"], ["dog"], protocol="Strict"),
    ):
        with pytest.raises(DialdownError, match="Unknown protocol 'Strict': did you mean 'strict'"):
            read()


def test_what_is_not_text_is_refused_by_its_place(llama: LM) -> None:
    texts: list[Any] = [*[f"a cat {number}" for number in range(19)], None]
    for read in (
        lambda: dd.mean_activations(llama, texts),
        lambda: dd.train_probe(llama, texts, [0, 1] * 10),
        lambda: dd.token_contrast(llama, ["cat"], texts),
    ):
        with pytest.raises(DialdownError, match="Text 19 of 20 is None, which is not text"):
            read()


@pytest.mark.parametrize("size", [0, -1])
def test_batches_of_none_are_refused(llama: LM, size: int) -> None:
    texts = [f"a cat {number}" for number in range(20)]
    pairs = [dd.Pair("a cat", "is a cat", "is a dog")]
    for read in (
        lambda: dd.mean_activations(llama, texts, batch_size=size),
        lambda: dd.train_probe(llama, texts, [0, 1] * 10, batch_size=size),
        lambda: dd.preference_gradient(llama, pairs, batch_size=size),
    ):
        with pytest.raises(DialdownError, match=f"batch_size={size} leaves nothing to do"):
            read()


def test_own_text_of_nothing_is_refused(llama: LM) -> None:
    with pytest.raises(DialdownError, match="texts=0 leaves nothing to do"):
        dd.own_text(llama, texts=0)
    with pytest.raises(DialdownError, match="tokens=-3 leaves nothing to do"):
        dd.own_text(llama, tokens=-3)


def test_the_logit_lens_takes_a_direction_and_no_other_shape(llama: LM) -> None:
    direction, vocabulary = dd.random_direction(llama), llama.view.unembedding.weight.shape[0]
    assert dd.logit_lens(llama, direction) == dd.logit_lens(llama, direction.vector)
    for vector in (np.ones(3), direction.vector[None], 2.0, []):
        with pytest.raises(DialdownError, match="is not of the residual stream"):
            dd.logit_lens(llama, vector)
    with pytest.raises(DialdownError, match="not finite has no tokens"):
        dd.logit_lens(llama, np.full(llama.view.d_model, np.nan))
    for k in (0, vocabulary + 1):
        with pytest.raises(DialdownError, match=f"k={k} tokens were asked for"):
            dd.logit_lens(llama, direction, k=k)
