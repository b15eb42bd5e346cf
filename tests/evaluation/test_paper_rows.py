"""Rows under the protocol of the paper, against what the authors' code measures."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dialdown import DialdownError
from dialdown.evaluation import Evaluator, estimate
from dialdown.interventions import untouched
from dialdown.models import LM
from helpers import tiny
from helpers.decoding import generate
from helpers.reading import TEXT, naive_nll
from helpers.suites import NEW, PAIRS, suite

PAPER_MODELS = ("gpt2", "llama", "mistral", "gemma2")


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


def test_a_prompt_cut_inside_a_character_is_removed_where_the_model_completes_it(
    llama: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = llama.encode(["you idiot café"])[0]
    given = suite(prompts=["you idiot café"], pairs=(), max_prompt_tokens=len(whole) - 1)
    evaluator = Evaluator(llama, given)
    after = llama.encode([" sat"])[0]
    for written, judged in (([whole[-1], *after], "é sat"), (after, " sat")):
        monkeypatch.setattr(evaluator.decoder, "run", lambda *args, ids=written, **_: [ids])
        evaluator.row(untouched(judged), "paper")
        evaluator._latest = (lambda: None, None, [])
        assert given.scorers[0].seen[-1] == [judged]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("protocol", ["paper", "strict"])
def test_a_window_that_predicts_nothing_is_refused(bos: bool, protocol: Any) -> None:
    lm = tiny.lm("llama", bos=bos)
    with pytest.raises(DialdownError, match="A window of 1 token predicts none"):
        Evaluator(lm, suite(window=1)).row(untouched(), protocol)
    assert Evaluator(lm, suite(window=2)).row(untouched(), protocol).metrics["log_ppl"].n > 1
