"""Texts and labels in a shape that would be read as something else are refused."""

from __future__ import annotations

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
    ):
        with pytest.raises(DialdownError, match="One text was given where a list of texts belongs"):
            read()
    with pytest.raises(DialdownError, match="max_tokens=-1 leaves no text"):
        dd.train_probe(llama, texts, labels, max_tokens=-1)


def test_an_unknown_protocol_is_one_sentence(llama: LM) -> None:
    texts, labels = [f"a cat {number}" for number in range(20)], [0, 1] * 10
    for read in (
        lambda: dd.mean_activations(llama, texts, protocol="Strict"),
        lambda: dd.train_probe(llama, texts, labels, protocol="Strict"),
    ):
        with pytest.raises(DialdownError, match="Unknown protocol 'Strict': did you mean 'strict'"):
            read()
