"""The logit lens, and the neurons a judge calls toxic by it (METHOD §2, §3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import dialdown as dd
from dialdown import DialdownError
from dialdown.models import LM
from dialdown.neurons import judged_toxic
from dialdown.neurons.logit_lens import direction_tokens, logit_lens_batch, value_vector_tokens
from helpers import tiny
from helpers.tables import compared, random_table, value_vector


def test_logit_lens_is_the_unembedding_of_the_normed_vector(named: LM) -> None:
    u = named.view.layers[1].value_vectors("strict")[4].numpy().astype(np.float64)
    with torch.inference_mode():
        logits = named.view.unembedding(named.view.final_norm(torch.tensor(u)[None, None].float()))[
            0, 0
        ]
    order = logits.argsort(descending=True)[:5].tolist()
    got = dd.logit_lens(named, u, k=5)
    assert [token for token, _ in got] == [named.tokenizer.decode([i]) for i in order]
    np.testing.assert_allclose([value for _, value in got], logits[order], rtol=1e-5)
    assert {token for token, _ in dd.logit_lens(named, -u, k=5)} != {token for token, _ in got}


def test_logit_lens_of_an_unembedding_row_names_its_token() -> None:
    """With a norm of ones and orthogonal rows, a row is its own token."""
    lm = tiny.lm("llama")
    with torch.no_grad():
        lm.view.final_norm.weight.fill_(1)
        lm.view.unembedding.weight.zero_()
        token = tiny.VOCABULARY["Ġcat"]
        lm.view.unembedding.weight[token, 5] = 2.0
    u = np.zeros(tiny.WIDTH)
    u[5] = 0.5
    ((text, logit),) = dd.logit_lens(lm, u, k=1)
    assert text == " cat"
    assert logit == pytest.approx(2.0 * np.sqrt(tiny.WIDTH), rel=1e-3)


@pytest.mark.parametrize("length", [1e-2, 1e-6, 1e4])
def test_the_tokens_of_a_direction_do_not_depend_on_its_length(named: LM, length: float) -> None:
    """Else a short one would show what the norm's bias or epsilon makes of it."""
    whole = dd.random_direction(named, seed=1)
    other = replace(whole, vector=length * whole.vector)
    for sign in (1, -1):
        expected = dd.logit_lens(named, sign * whole.vector, k=9)
        got = dd.logit_lens(named, sign * other.vector, k=9)
        assert [token for token, _ in got] == [token for token, _ in expected]
        np.testing.assert_allclose(
            [logit for _, logit in got], [logit for _, logit in expected], rtol=1e-3, atol=1e-3
        )
    frames = [direction_tokens(named, [direction]) for direction in (whole, other)]
    assert frames[0]["token"].equals(frames[1]["token"])


def test_the_vector_of_a_pruned_neuron_stays_zero(gpt2: LM) -> None:
    top = dd.logit_lens(gpt2, np.zeros(tiny.WIDTH))
    assert np.isfinite([logit for _, logit in top]).all()
    assert top == dd.logit_lens(gpt2, -np.zeros(tiny.WIDTH))


PROTOCOLS = ("strict", "paper")


def test_the_batched_logit_lens_is_the_lens_one_by_one(named: LM) -> None:
    vectors = np.random.default_rng(0).standard_normal((9, tiny.WIDTH)).astype(np.float32)
    lines = logit_lens_batch(named, vectors, k=6)
    assert len(lines) == 9
    for vector, line in zip(vectors, lines, strict=True):
        alone = dd.logit_lens(named, vector, k=6)
        assert [token for token, _ in line] == [token for token, _ in alone]
        np.testing.assert_allclose(
            [logit for _, logit in line], [logit for _, logit in alone], rtol=1e-4, atol=1e-5
        )


def test_a_judge_is_asked_once_about_each_token(llama: LM) -> None:
    asked: list[str] = []

    def judge(tokens: Sequence[str]) -> list[bool | None]:
        asked.extend(tokens)
        return [None if token == tokens[0] else token == tokens[1] for token in tokens]

    frame = value_vector_tokens(llama, compared(llama), count=20, k=5, judge=judge)
    assert sorted(asked) == sorted({*frame["token"]})
    known = {asked[0]: None} | {token: token == asked[1] for token in asked[1:]}
    assert frame["toxic"].to_list() == [known[token] for token in frame["token"]]
    with pytest.raises(DialdownError, match=r"1 answers for \d+ tokens"):
        value_vector_tokens(llama, compared(llama), judge=lambda tokens: [True])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_judged_neurons_are_the_aligned_ones_with_a_toxic_token(gemma2: LM, protocol: Any) -> None:
    table = compared(gemma2, protocol)
    aligned = table.most_aligned(12)
    tokens = {
        place: {
            token for token, _ in dd.logit_lens(gemma2, value_vector(gemma2, *place, protocol), k=4)
        }
        for place in zip(*np.nonzero(aligned), strict=True)
    }
    said_by = Counter(token for said in tokens.values() for token in said)
    toxic = [token for token, _ in said_by.most_common()[-2:]]

    def judge(given: Sequence[str]) -> list[bool | None]:
        return [True if token in toxic else None for token in given]

    mask = judged_toxic(gemma2, table, judge, count=12, k=4)
    assert {*zip(*np.nonzero(mask), strict=True)} == {
        place for place, said in tokens.items() if said & {*toxic}
    }
    assert 0 < mask.sum() < 12
    assert not judged_toxic(gemma2, table, lambda given: [False] * len(given), count=12).any()


def test_a_table_of_another_model_is_refused(gpt2: LM) -> None:
    with pytest.raises(DialdownError, match=r"shape \(4, 30\) and tiny-gpt2 has 3 layers of 24"):
        value_vector_tokens(gpt2, random_table())
    with pytest.raises(DialdownError, match=r"73 value vectors .* has 72"):
        value_vector_tokens(gpt2, compared(gpt2), count=73)
