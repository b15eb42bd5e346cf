"""Log-perplexity and KL against naive float64 loops (METHOD §6)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dialdown import DialdownError
from dialdown.evaluation.perplexity import BLOCK, ReferenceText
from dialdown.models import LM
from dialdown.models.tokens import text_windows
from helpers import tiny
from helpers.edits import make
from helpers.reading import TEXT, naive_log_probs, naive_nll


@pytest.mark.parametrize("bos", [False, True])
def test_windows_cover_the_text_once_with_a_bos_where_the_protocol_says(bos: bool) -> None:
    lm = LM.of(tiny.model("llama"), tiny.tokenizer(bos=bos))
    ids = lm.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    strict, paper = (
        text_windows(lm, TEXT, protocol=p, window=20, max_windows=99) for p in ("strict", "paper")
    )
    assert len(strict) > 3
    if bos:
        assert all(window[0] == 1 and 1 not in window[1:] for window in strict)
        assert [token for window in strict for token in window[1:]] == ids
        assert [token for window in paper for token in window] == [1, *ids]
        assert all(len(window) == 20 for window in [*strict[:-1], *paper[:-1]])
    else:
        assert strict == paper == [ids[at : at + 20] for at in range(0, len(ids), 20)]
    assert text_windows(lm, TEXT, protocol="strict", window=20, max_windows=2) == strict[:2]


def test_a_last_window_of_one_token_predicts_nothing(llama: LM) -> None:
    windows = text_windows(llama, "x" * 21, protocol="strict", window=10, max_windows=9)
    assert [len(window) for window in windows] == [10, 10]


def test_text_that_has_no_perplexity(llama: LM) -> None:
    for text in ("", "x"):
        with pytest.raises(DialdownError, match="fewer than two tokens"):
            text_windows(llama, text, protocol="strict", window=10, max_windows=9)
    with pytest.raises(
        DialdownError, match=r"window of 97 tokens exceeds the context of tiny-llama \(96\)"
    ):
        text_windows(llama, TEXT, protocol="strict", window=97, max_windows=9)


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_perplexity_and_kl_are_those_of_a_plain_loop(named: LM, protocol: Any) -> None:
    windows = text_windows(named, TEXT, protocol=protocol, window=20, max_windows=9)
    probe = ReferenceText(named, windows, kl_windows=2)
    other = make(named, "scale", share=1.0).fold(named)
    for lm in (named, other):
        got = probe.measure(lm)
        np.testing.assert_allclose(
            got.nll, [naive_nll(lm, window) for window in windows], rtol=1e-4
        )
        assert got.tokens.tolist() == [len(window) - 1 for window in windows]
        expected = []
        for window in windows[:2]:
            base, its = naive_log_probs(named, window), naive_log_probs(lm, window)
            # At the positions that predict a token of the window.
            expected.append(float((base.exp() * (base - its)).sum(-1)[:-1].mean()))
        np.testing.assert_allclose(got.kl, expected, rtol=1e-3, atol=1e-6)
    assert got.kl.min() > 1e-3
    # KL(base || model), not the other way round.
    base, its = naive_log_probs(named, windows[0]), naive_log_probs(other, windows[0])
    assert got.kl[0] != pytest.approx(
        float((its.exp() * (its - base)).sum(-1)[:-1].mean()), rel=1e-3
    )


def test_a_long_window_is_measured_in_blocks_that_keep_its_mean(llama: LM) -> None:
    windows = text_windows(llama, TEXT * 3, protocol="strict", window=75, max_windows=1)
    got = ReferenceText(llama, windows, kl_windows=1).measure(
        make(llama, "scale", share=1.0).fold(llama)
    )
    assert got.tokens.tolist() == [BLOCK, BLOCK, 74 - 2 * BLOCK]
    whole = naive_nll(make(llama, "scale", share=1.0).fold(llama), windows[0])
    assert np.average(got.nll, weights=got.tokens) == pytest.approx(whole, rel=1e-4)
    assert len(got.kl) == 3


@pytest.mark.parametrize("positions", ["all", "first"])
def test_a_text_is_read_under_an_edit(llama: LM, positions: Any) -> None:
    edit = make(llama, "set")
    windows = text_windows(llama, TEXT, protocol="strict", window=20, max_windows=9)
    probe = ReferenceText(llama, windows, kl_windows=9)
    got = probe.measure(llama, edit, positions=positions)
    if positions == "all":
        expected = probe.measure(edit.fold(llama))
        np.testing.assert_allclose(got.nll, expected.nll, rtol=1e-4)
        np.testing.assert_allclose(got.kl, expected.kl, rtol=1e-3)
    with edit.applied(llama, positions=positions), torch.inference_mode():
        logits = llama.model(input_ids=torch.tensor([windows[1]])).logits[0].double()
    picked = torch.log_softmax(logits, -1)[:-1].gather(-1, torch.tensor(windows[1][1:])[:, None])
    assert got.nll[1] == pytest.approx(-float(picked.mean()), rel=1e-5)


def test_a_perplexity_that_is_not_finite_names_the_intervention(llama: LM) -> None:
    windows = text_windows(llama, TEXT, protocol="strict", window=20, max_windows=1)
    broken = replace(make(llama, "shift"), name="too_much")
    broken.offset[1, 2] = float("nan")
    with pytest.raises(DialdownError, match="tiny-llama under too_much is not finite"):
        ReferenceText(llama, windows, kl_windows=0).measure(llama, broken)


def test_predictions_of_the_base_that_are_not_finite_are_said_of_the_base(llama: LM) -> None:
    windows = text_windows(llama, TEXT, protocol="strict", window=20, max_windows=1)
    overflowing = llama.twin()
    overflowing.view.final_norm.weight.data[0] = float("inf")
    probe = ReferenceText(llama, windows, kl_windows=0)
    with pytest.raises(
        DialdownError, match=r"log-perplexity of tiny-llama is not finite.* float32 or bfloat16\.$"
    ):
        probe.measure(overflowing, make(llama, "scale"))
