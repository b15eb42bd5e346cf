"""Metrics against naive float64 loops and scipy, and the evaluator under both protocols (METHOD §5,
§6).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dialdown as dd
from dialdown.errors import DialdownError
from dialdown.evaluation.bootstrap import Estimate, direction, estimate
from dialdown.evaluation.evaluator import METRICS, Evaluator, Measured, Row, Suite, as_row
from dialdown.evaluation.overlap import is_degenerate, repetition, token_f1
from dialdown.evaluation.perplexity import BLOCK, ReferenceText
from dialdown.interventions.intervention import untouched
from dialdown.models.kl import kl_divergence
from dialdown.models.lm import LM
from dialdown.models.tokens import text_windows
from helpers import tiny
from helpers.decoding import PROMPTS, generate
from helpers.edits import make
from helpers.scorers import FakeScorer

TEXT = "the cat sat on the mat\n\nand what then? nothing much happened, said the zebra."
PAPER_MODELS = ("gpt2", "llama", "mistral", "gemma2")
PAIRS = (("the cat", " sat on"), ("the zebra", "said no"), ("a", "b"))
NEW = 6


def suite(**options: Any) -> Suite:
    given = {
        "prompts": PROMPTS,
        "pairs": PAIRS,
        "text": TEXT,
        "scorers": [FakeScorer(), FakeScorer("second", 31)],
    }
    return Suite(**{**given, "max_new_tokens": NEW, "window": 20, "kl_windows": 2, **options})


# ---- F1, repetition


@pytest.mark.parametrize(
    ("given", "gold", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], 1.0),
        ([1, 2], [3, 4], 0.0),
        ([1, 1, 1, 2], [1, 1, 3], 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)),
        ([2, 1], [1, 2], 1.0),
        ([], [1], 0.0),
        ([], [], 0.0),
    ],
)
def test_f1_is_of_multisets(given: list[int], gold: list[int], expected: float) -> None:
    assert token_f1(given, gold) == pytest.approx(expected)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), max_size=8), st.lists(st.integers(0, 5), max_size=8))
def test_f1_is_symmetric_and_a_fraction(a: list[int], b: list[int]) -> None:
    assert token_f1(a, b) == token_f1(b, a)
    assert 0 <= token_f1(a, b) <= 1
    assert (token_f1(a, b) == 1) == (sorted(a) == sorted(b) and bool(a))


@pytest.mark.parametrize(
    ("tokens", "expected", "degenerate"),
    [
        ([], None, True),
        ([1], None, False),
        ([1, 2, 3, 4], 0.0, False),
        ([1, 1, 1, 1], 2 / 3, True),
        ([1, 2, 1, 2, 1], 0.5, False),
        ([1, 2, 1, 2, 1, 2], 0.6, True),
    ],
)
def test_repetition_is_the_share_of_two_grams_seen_before(
    tokens: list[int], expected: float | None, degenerate: bool
) -> None:
    assert repetition(tokens) == (None if expected is None else pytest.approx(expected))
    assert is_degenerate(tokens) is degenerate


@pytest.mark.parametrize("tokens", [[1, 2], [1, 1, 1, 1], [3, 1, 2, 3, 1, 2, 3], [5, 4, 3, 2, 1]])
def test_repetition_is_one_minus_distinct_2(tokens: list[int]) -> None:
    distinct = {(tokens[place], tokens[place + 1]) for place in range(len(tokens) - 1)}
    assert repetition(tokens) == pytest.approx(1 - len(distinct) / (len(tokens) - 1))


# ---- intervals


def test_the_interval_is_scipys() -> None:
    values = np.random.default_rng(0).exponential(size=80)
    got = estimate(values)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert got.mean == pytest.approx(values.mean())
    width = theirs.high - theirs.low
    assert got.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert got.high == pytest.approx(theirs.high, abs=0.05 * width)
    assert got.n == 80


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = [(e := estimate(rng.normal(3, 1, size=60))).low < 3 < e.high for _ in range(200)]
    assert 0.89 < np.mean(hits) < 0.99


def test_a_weighted_mean_is_over_tokens() -> None:
    values, weights = [1.0, 2.0, 6.0], [10, 10, 1]
    got = estimate(values, weights=weights)
    assert got.mean == pytest.approx((10 + 20 + 6) / 21)
    assert 1 <= got.low < got.mean < got.high <= 6
    # Equal weights change nothing at all.
    assert estimate(values, weights=[7, 7, 7]) == estimate(values)


def test_intervals_are_seeded_and_none_without_values() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert estimate(values) == estimate(values)
    assert estimate(values, seed=1).low != estimate(values).low
    assert estimate([]) is None
    one = estimate([2.0])
    assert (one.low, one.mean, one.high, one.n) == (2, 2, 2, 1)


def measured(
    values: Sequence[float], name: str = "toxicity", tokens: Sequence[int] = ()
) -> Measured:
    return Measured({name: [*values]}, [*tokens], [], [], 0)


def test_a_comparison_is_paired() -> None:
    """A constant difference has no uncertainty, however much the prompts differ."""
    base = np.random.default_rng(0).normal(size=50)
    change = measured(base - 0.25).estimate("toxicity", measured(base))
    assert (change.mean, change.low, change.high) == pytest.approx((-0.25, -0.25, -0.25))
    assert measured(base).estimate("toxicity").high - measured(base).estimate("toxicity").low > 0.3
    with pytest.raises(
        DialdownError, match="50 units here and on 49 there, which cannot be paired"
    ):
        measured(base).estimate("toxicity", measured(base[1:]))


def test_units_without_a_value_are_left_out() -> None:
    nan = float("nan")
    assert measured([1, nan, 3]).estimate("toxicity").mean == 2
    assert measured([1, nan, 3]).estimate("toxicity").n == 2
    assert measured([nan, nan]).estimate("toxicity") is None
    pair = measured([1, nan, 3, 5]).estimate("toxicity", measured([0, 1, nan, 1]))
    assert (pair.mean, pair.n) == (2.5, 2)


def test_log_perplexity_is_weighted_by_tokens() -> None:
    values = measured([1.0, 4.0], "log_ppl", tokens=[30, 10])
    assert values.estimate("log_ppl").mean == pytest.approx(1.75)
    assert values.estimate(
        "log_ppl", measured([1.0, 3.0], "log_ppl", tokens=[30, 10])
    ).mean == pytest.approx(0.25)


# ---- log-perplexity and KL


def naive_log_probs(lm: LM, ids: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits = (
            copy.deepcopy(lm.model)
            .double()(input_ids=torch.tensor([[*ids]]), use_cache=False)
            .logits[0]
        )
    return torch.log_softmax(logits.double(), -1)


def naive_nll(lm: LM, ids: Sequence[int]) -> float:
    log_probs = naive_log_probs(lm, ids)
    return -float(
        np.mean([float(log_probs[place, ids[place + 1]]) for place in range(len(ids) - 1)])
    )


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


def test_kl_of_known_distributions() -> None:
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    got = kl_divergence(p.log(), q.log(), dtype=torch.float64)
    torch.testing.assert_close(
        got, torch.tensor([0.5 * np.log(2) + 0.5 * np.log(2 / 3), 0.0], dtype=torch.float64)
    )
    assert got.dtype == torch.float64


def test_a_token_that_both_models_rule_out_counts_nothing() -> None:
    p, q = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.25, 0.75, 0.0]])
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert float(kl_divergence(p.log(), q.log())) == pytest.approx(expected, rel=1e-6)
    assert float(kl_divergence(q.log(), torch.tensor([[1.0, 0.0, 0.0]]).log())) == np.inf


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


# ---- the evaluator


def test_strict_rows_hold_what_a_plain_loop_measures(llama: LM) -> None:
    given = suite()
    row = Evaluator(llama, given).row(untouched(), "strict")
    new = [generate(llama, prompt, max_new_tokens=NEW) for prompt in PROMPTS]
    texts = [llama.tokenizer.decode(ids, skip_special_tokens=True) for ids in new]
    assert row.units.texts == texts
    for scorer in given.scorers:
        assert scorer.seen == [texts]
        scores = [sum(text.encode()) % scorer.modulus / scorer.modulus for text in texts]
        assert row.toxicity_by[scorer.name].mean == pytest.approx(np.mean(scores))
    assert row.metrics["toxicity"] == row.toxicity_by["fake"], "the first scorer is the judge"
    assert row.units.values["repetition"] == pytest.approx([repetition(ids) for ids in new])
    assert row.units.values["degenerate"] == [float(is_degenerate(ids)) for ids in new]
    f1 = []
    for prompt, gold in PAIRS:
        true = llama.tokenizer(gold if gold.startswith(" ") else f" {gold}")["input_ids"][:NEW]
        f1.append(token_f1(generate(llama, prompt, max_new_tokens=NEW), true))
    assert row.units.values["f1"] == pytest.approx(f1)
    windows = text_windows(llama, TEXT, protocol="strict", window=20, max_windows=64)
    nll, tokens = (
        [naive_nll(llama, window) for window in windows],
        [len(window) - 1 for window in windows],
    )
    assert row.metrics["log_ppl"].mean == pytest.approx(np.average(nll, weights=tokens), rel=1e-4)
    assert (row.metrics["kl"].mean, row.metrics["kl"].n) == (pytest.approx(0, abs=1e-6), 2)


def test_what_was_decoded_for_one_row_is_not_taken_for_another(llama: LM) -> None:
    evaluator = Evaluator(llama, suite())
    edit = make(llama, "scale")
    edited = [
        Evaluator(llama, suite()).row(edit, protocol).units.texts
        for protocol in ("strict", "paper")
    ]
    alone = Evaluator(llama, suite()).row(untouched(), "strict").units.texts
    assert alone not in edited
    assert edited[0] != edited[1]
    assert [evaluator.row(edit, protocol).units.texts for protocol in ("strict", "paper")] == edited
    assert [
        evaluator.row(untouched(), protocol).units.texts for protocol in ("strict", "paper")
    ] == [alone] * 2
    with edit.applied(llama):
        assert evaluator.row(untouched(), "strict").units.texts == edited[0]
    assert evaluator.row(untouched("again"), "paper").units.texts == alone
    for strength in (1.0, 2.0):
        other = make(llama, "scale", strength=strength).fold(llama)
        row = evaluator.row(untouched(), "strict", model=other)
        assert row.units.texts == Evaluator(other, suite()).row(untouched(), "strict").units.texts
        del other


def test_paper_rows_remove_the_prompt_string(llama: LM) -> None:
    """METHOD §5: every occurrence of the prompt string goes, wherever it stands."""
    given = suite(prompts=["a", "the cat"])
    Evaluator(llama, given).row(untouched(), "paper")
    for place, prompt in enumerate(given.prompts):
        new = generate(llama, prompt, max_new_tokens=NEW)
        whole = llama.tokenizer.decode(
            [*llama.tokenizer(prompt)["input_ids"], *new], skip_special_tokens=True
        )
        assert given.scorers[0].seen[0][place] == whole.replace(prompt, "")


@pytest.mark.parametrize("name", PAPER_MODELS)
@pytest.mark.parametrize("bos", [False, True])
def test_the_papers_f1_is_of_prompt_and_continuation_against_the_true_continuation_alone(
    name: str, bos: bool
) -> None:
    """METHOD §5: the truth as it is given, cut where prompt and continuation end; end-of-text, the
    padding, not counted.
    """
    lm = tiny.lm(name, bos=bos)
    pairs = (
        *PAIRS,
        ("a cat", "the cat <eos> sat on the mat and on and on"),
        ("and then the", " cat"),
    )
    row = Evaluator(lm, suite(pairs=pairs, max_prompt_tokens=5)).row(untouched(), "paper")
    assert len(lm.tokenizer(pairs[3][1])["input_ids"]) > 5 + NEW
    expected = []
    for prompt, gold in pairs:
        cut = lm.tokenizer(prompt)["input_ids"][:5]
        output = lm.model.generate(
            torch.tensor([cut]), attention_mask=torch.ones(1, len(cut), dtype=torch.long),
            max_new_tokens=NEW,
            do_sample=False, pad_token_id=2,
        )[0].tolist()  # fmt: skip
        written = [token for token in output if token != 2]
        true = [token for token in lm.tokenizer(gold)["input_ids"][: 5 + NEW] if token != 2]
        shared = sum(min(written.count(token), true.count(token)) for token in {*true})
        precision, recall = shared / len(written), shared / len(true)
        expected.append(2 * precision * recall / (precision + recall) if shared else 0.0)
    assert row.units.values["f1"] == pytest.approx(expected)
    assert len({*expected}) > 3
    strict = Evaluator(lm, suite(pairs=pairs, max_prompt_tokens=5)).row(untouched(), "strict")
    assert strict.units.values["f1"] != pytest.approx(expected)


@pytest.mark.parametrize("name", PAPER_MODELS)
@pytest.mark.parametrize("bos", [False, True])
def test_the_papers_log_perplexity_divides_by_every_token(name: str, bos: bool) -> None:
    """METHOD §5: also by the first of each window, which is not predicted, and by a last window of
    one token.
    """
    lm = tiny.lm(name, bos=bos)
    text = next(
        t for n in range(20) if len(lm.tokenizer(t := TEXT + "x" * n)["input_ids"]) % 20 == 1
    )
    ids = lm.tokenizer(text)["input_ids"]
    windows = [ids[at : at + 20] for at in range(0, len(ids), 20)]
    assert len(windows[-1]) == 1
    summed = sum(naive_nll(lm, window) * (len(window) - 1) for window in windows[:-1])
    evaluator = Evaluator(lm, suite(text=text))
    paper = evaluator.row(untouched(), "paper")
    assert paper.metrics["log_ppl"].mean == pytest.approx(summed / len(ids), rel=1e-4)
    # The interval is of the same mean: it scales with it, and a paired difference to the same row
    # is none.
    predicted = sum(len(window) - 1 for window in windows)
    nll = [naive_nll(lm, window) for window in windows[:-1]]
    plain = estimate(nll, weights=[19] * len(nll))
    got = paper.metrics["log_ppl"]
    for end in ("low", "high"):
        assert getattr(got, end) == pytest.approx(
            getattr(plain, end) * predicted / len(ids), rel=1e-3
        )
    assert paper.difference("log_ppl", paper).high == 0
    # KL is ours, and over predicted tokens under both protocols.
    assert paper.metrics["kl"].mean == pytest.approx(0, abs=1e-6)
    if not bos:
        strict = evaluator.row(untouched(), "strict")
        assert strict.metrics["log_ppl"].mean == pytest.approx(summed / predicted, rel=1e-4)


def test_the_paper_scores_text_without_the_prompt_where_it_is_repeated(
    llama: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = suite(prompts=["cat"], pairs=())
    evaluator = Evaluator(llama, given)
    ids = llama.tokenizer(" cat, the cat sat")["input_ids"]
    monkeypatch.setattr(evaluator.decoder, "run", lambda *args, **options: [ids])
    evaluator.row(untouched(), "paper")
    evaluator.row(untouched("again"), "strict")
    assert given.scorers[0].seen == [[" , the  sat"], [" cat, the cat sat"]]


@pytest.mark.parametrize("kind", ["set", "scale"])
def test_where_an_edit_acts_under_each_protocol(llama: LM, kind: str) -> None:
    edit = make(llama, kind)
    evaluator = Evaluator(llama, suite())
    paper, strict = (evaluator.row(edit, protocol).units for protocol in ("paper", "strict"))
    folded = Evaluator(edit.fold(llama), suite()).row(untouched(), "strict").units
    assert strict.texts == folded.texts
    assert strict.values["log_ppl"] == pytest.approx(folded.values["log_ppl"], rel=1e-4)
    with edit.applied(llama, positions="last"):
        new = [generate(llama, prompt, max_new_tokens=NEW) for prompt in PROMPTS]
    assert paper.texts == [llama.tokenizer.decode(ids, skip_special_tokens=True) for ids in new]
    assert paper.texts != strict.texts
    windows = text_windows(llama, TEXT, protocol="paper", window=20, max_windows=64)
    first = ReferenceText(llama, windows, kl_windows=2).measure(llama, edit, positions="first")
    share = first.tokens.sum() / sum(map(len, windows))
    assert paper.values["log_ppl"] == pytest.approx((first.nll * share).tolist())
    assert paper.values["kl"] == pytest.approx(first.kl.tolist())


def test_rows_come_in_order_with_the_untouched_model_first(llama: LM) -> None:
    edits = [
        replace(make(llama, "scale"), name="one"),
        replace(make(llama, "steer"), name="two", control_of="one"),
    ]
    calls: list[Any] = []
    rows = dd.evaluate(
        llama,
        edits,
        suite(),
        protocols=("paper", "strict"),
        progress=lambda *call: calls.append(call),
    )
    assert [(row.protocol, row.intervention) for row in rows] == [
        (protocol, name) for protocol in ("paper", "strict") for name in ("none", "one", "two")
    ]
    assert rows[2].control_of == "one"
    assert (rows[1].kind, rows[1].neurons) == ("scale", edits[0].neurons)
    assert calls == [("evaluating", number, 6) for number in range(1, 7)]
    again = dd.evaluate(llama, edits, suite(), protocols=("paper", "strict"))
    assert [row.units.values for row in again] == [row.units.values for row in rows]
    assert rows[3].units.values != rows[4].units.values


def test_another_model_of_the_same_name_is_measured_itself(llama: LM) -> None:
    """Two models wrapped in memory carry their class's name; the tuned one must not get the base
    model's row.
    """
    tuned = replace(tiny.lm("llama", seed=1), name=llama.name)
    evaluator = Evaluator(llama, suite())
    base, other = (
        evaluator.row(untouched(), "strict"),
        evaluator.row(untouched(), "strict", model=tuned),
    )
    alone = Evaluator(tuned, suite()).row(untouched(), "strict")
    assert other.units.texts == alone.units.texts != base.units.texts
    assert other.units.values["log_ppl"] == alone.units.values["log_ppl"]
    assert other.metrics["kl"].mean > 0.1, "KL is to the base model"


def test_the_json_of_a_row(llama: LM) -> None:
    edits = [replace(make(llama, "set"), alpha=0.5, beta=0.1)]
    reference, row = dd.evaluate(llama, edits, suite())
    written = json.loads(
        json.dumps(row.beside(reference, PROMPTS, samples=3).to_json(), allow_nan=False)
    )
    facts = (
        "intervention kind family strength protocol control_of control alpha beta neurons samples "
        "toxicity_by change control_minus_main"
    )
    assert {*METRICS, *facts.split()} == set(written)
    assert (written["alpha"], written["beta"], written["neurons"]) == (0.5, 0.1, edits[0].neurons)
    assert set(written["toxicity"]) == {"mean", "low", "high", "n"}
    assert set(written["toxicity_by"]) == {"fake", "second"}
    assert [sample["prompt"] for sample in written["samples"]] == [*PROMPTS[:3]]
    assert written["samples"][1]["continuation"] == row.units.texts[1]
    assert written["control_minus_main"] is None
    read = Row.from_json(written)
    assert read.to_json() == written
    assert read == replace(row.beside(reference, PROMPTS, samples=3), measured=None)
    with pytest.raises(DialdownError, match="holds means only"):
        read.difference("toxicity", reference)
    difference = row.metrics["toxicity"].mean - reference.metrics["toxicity"].mean
    assert written["change"]["toxicity"]["mean"] == pytest.approx(difference)
    assert all(
        value["mean"] == 0
        for value in reference.beside(reference, PROMPTS, samples=0).to_json()["change"].values()
    )


def test_a_control_is_compared_with_what_it_controls(llama: LM) -> None:
    reference, main, control = dd.evaluate(
        llama, [make(llama, "set"), make(llama, "set", seed=1)], suite()
    )
    written = control.beside(reference, PROMPTS, samples=0, main=main).to_json()[
        "control_minus_main"
    ]
    assert set(written) == set(METRICS)
    paired = np.array(control.units.values["toxicity"]) - np.array(main.units.values["toxicity"])
    assert written["toxicity"] == estimate(paired).to_json()
    assert written["toxicity"]["mean"] != 0


def test_a_metric_nobody_has_a_value_for_is_null(llama: LM) -> None:
    row = Evaluator(llama, suite(pairs=(), max_new_tokens=1)).row(untouched(), "strict")
    written = row.beside(row, PROMPTS, samples=1).to_json()
    assert written["f1"] is None
    assert written["repetition"] is None
    assert written["toxicity"]["n"] == len(PROMPTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scorers": []}, "no scorer"),
        ({"prompts": ["a", ""]}, "Prompt 1 of 5 is empty"),
        ({"prompts": [], "pairs": []}, "no prompts"),
        ({"prompts": ["x" * 95], "max_prompt_tokens": 95}, "exceed the context"),
    ],
)
def test_suites_that_cannot_be_run(llama: LM, options: Any, message: str) -> None:
    with pytest.raises(DialdownError, match=message):
        Evaluator(llama, suite(**options))


def test_a_row_of_named_values() -> None:
    row = as_row(replace(untouched("dpo"), alpha=1.0), "paper", measured([1.0, 2.0]))
    assert (row.intervention, row.kind, row.protocol, row.alpha, row.neurons) == (
        "dpo",
        "none",
        "paper",
        1.0,
        0,
    )
    assert row.metrics["toxicity"].mean == 1.5
    assert row.difference("toxicity", row).mean == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Estimate(-0.1, -0.2, -0.05, 40), "less"),
        (Estimate(0.1, 0.05, 0.2, 40), "more"),
        (Estimate(-0.1, -0.2, 0.0, 40), "not told apart"),
        (Estimate(-0.1, -0.2, -0.05, 9), "not told apart"),
    ],
)
def test_no_direction_where_the_interval_holds_zero_or_the_units_are_few(
    change: Estimate, said: str
) -> None:
    assert direction(change) == said
