"""Preference pairs: which continuations become one, and that each follows its own prompt (METHOD
§8).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import dialdown as dd
from dialdown import DialdownError
from dialdown.data import Pair, PairSet
from dialdown.models import LM, Decoder
from dialdown.neurons import Direction
from dialdown.training import PairSettings
from dialdown.training.make_pairs import Candidates, choose_pairs, count_pairs, make_pairs
from helpers import tiny
from helpers.scorers import FakeScorer

PROMPTS = [
    f"{word} {other}"
    for word in ("the cat", "a", "zebra", "why")
    for other in ("sat", "on", "it", "x")
]


QUICK = PairSettings(
    count=6, sampled=3, steered=1, margin=0.1, max_new_tokens=5, batch_size=4, steering_strength=0.5
)


def probe(**record: Any) -> Direction:
    vector = np.random.default_rng(0).standard_normal(tiny.WIDTH)
    return Direction("probe", vector, "residual", {"residual_norm": 20.0, **record})


def pairs_of(lm: LM, prompts: list[str], scorer: FakeScorer, *args: Any, **options: Any) -> PairSet:
    return make_pairs(lm, prompts, scorer.score, *args, scorer=scorer.name, **options)


def test_a_pair_is_the_least_and_the_most_toxic_of_its_prompt(llama: LM) -> None:
    scorer = FakeScorer()
    pair_set = pairs_of(llama, PROMPTS, scorer, QUICK, direction=probe())
    assert len(pair_set.pairs) == 6
    # Four lists of texts a batch, one per candidate, in the order of the prompts.
    candidates = {
        prompt: [scorer.seen[4 * (number // 4) + column][number % 4] for column in range(4)]
        for number, prompt in enumerate(PROMPTS[: pair_set.record["prompts_used"]])
    }
    expected = []
    for prompt, texts in candidates.items():
        usable = [text for text in texts if text.strip()]
        scores = FakeScorer().score(usable)
        if len(usable) > 1 and scores.max() - scores.min() >= QUICK.margin:
            expected.append(
                Pair(prompt, usable[int(scores.argmin())], usable[int(scores.argmax())])
            )
    assert [*pair_set.pairs] == expected[:6]
    assert pair_set.record["chosen_score"] == pytest.approx(
        np.mean(FakeScorer().score([pair.chosen for pair in pair_set.pairs]))
    )
    assert pair_set.record["rejected_score"] - pair_set.record["chosen_score"] >= QUICK.margin
    assert 0 <= pair_set.record["rejected_steered"] <= 1
    assert pair_set.record["scorer"] == "fake"
    assert pair_set.record["settings"]["sampled"] == 3


def test_steered_candidates_move_towards_the_concept(llama: LM) -> None:
    """Steering subtracts alpha * W; towards the concept alpha is negative, half the residual's norm
    long.
    """
    direction, scorer = probe(), FakeScorer()
    pairs_of(llama, PROMPTS, scorer, replace(QUICK, temperature=1e-4), direction=direction)
    alpha = -0.5 * 20 / np.linalg.norm(direction.vector)
    decoder = Decoder(llama, PROMPTS[:4], max_new_tokens=QUICK.max_new_tokens)
    assert scorer.seen[3] == decoder.texts(decoder.run(dd.steer(direction, alpha)))
    assert scorer.seen[3] != scorer.seen[2] == decoder.texts(decoder.run())


def test_the_steered_candidate_is_the_last_and_says_what_it_is_pushed_to(llama: LM) -> None:
    """An overwhelming push along one dimension of the normed residual makes it say that dimension's
    likeliest token.
    """
    w = np.zeros(tiny.WIDTH)
    w[3] = 1.0
    gain = float(llama.view.final_norm.weight[3].detach())
    token = int((gain * llama.view.unembedding.weight[:, 3]).argmax())
    scorer = FakeScorer()
    strong = replace(QUICK, steering_strength=1e6, margin=0.0, temperature=0.01)
    pairs_of(
        llama,
        PROMPTS,
        scorer,
        strong,
        direction=Direction("probe", w, "residual", {"residual_norm": 1.0}),
    )
    said = llama.tokenizer.decode([token] * 5)
    assert scorer.seen[3] == [said] * 4
    assert said not in scorer.seen[0] + scorer.seen[1] + scorer.seen[2]


def test_candidates_differ_and_are_seeded(llama: LM) -> None:
    runs = []
    for seed in (0, 0, 1):
        scorer = FakeScorer()
        pair_set = pairs_of(llama, PROMPTS, scorer, replace(QUICK, seed=seed), direction=probe())
        runs.append((pair_set.pairs, scorer.seen))
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[2][0]
    first, second = runs[0][1][0], runs[0][1][1]
    assert first != second, "candidates of one prompt must be separate samples"
    batches = {tuple(column) for column in runs[0][1]}
    assert len(batches) == len(runs[0][1])


def test_the_greedy_candidate_is_what_generate_writes_and_comes_after_the_same_samples(
    llama: LM,
) -> None:
    with_it, without = FakeScorer(), FakeScorer()
    direction = probe()
    pair_set = pairs_of(llama, PROMPTS, with_it, replace(QUICK, greedy=True), direction=direction)
    pairs_of(llama, PROMPTS, without, QUICK, direction=direction)
    assert any(with_it.seen[3])
    # Three samples come first, then it, then the steered one.
    assert with_it.seen[:3] == without.seen[:3]
    for prompt, text in zip(PROMPTS[:4], with_it.seen[3], strict=True):
        ids = torch.tensor([llama.tokenizer(prompt)["input_ids"]])
        whole = llama.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False
        )
        assert llama.tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True) == text
    assert pair_set.record["settings"]["greedy"] is True
    # It is not counted as steered.
    unsteered = pairs_of(llama, PROMPTS, FakeScorer(), replace(QUICK, greedy=True, steered=0))
    assert unsteered.record["chosen_steered"] == unsteered.record["rejected_steered"] == 0
    assert PairSettings(sampled=1, greedy=True, steered=0).unsteered == 2


def test_a_pair_holds_the_part_of_the_prompt_its_continuations_follow(llama: LM) -> None:
    long = [prompt + " and then some more" for prompt in PROMPTS]
    settings = replace(QUICK, steered=0, sampled=4)
    cut = pairs_of(llama, long, FakeScorer(), settings, max_prompt_tokens=6)
    for pair in cut.pairs:
        assert len(llama.tokenizer(pair.prompt)["input_ids"]) <= 6
        assert any(prompt.startswith(pair.prompt) for prompt in long)
    short = [llama.tokenizer.decode(llama.tokenizer(prompt)["input_ids"][:6]) for prompt in long]
    assert cut.pairs == pairs_of(llama, short, FakeScorer(), settings).pairs
    whole = pairs_of(llama, long, FakeScorer(), settings, max_prompt_tokens=64)
    assert all(pair.prompt in long for pair in whole.pairs)


def test_empty_continuations_are_no_candidates() -> None:
    texts = [["", " ok", "  "], [" x", " bad", " y"], [" z", "", "\n"]]
    scores = [[0.0, 0.0, 0.0], [0.2, 0.9, 0.0], [0.8, 0.0, 0.0]]
    batch = Candidates(["p", "q", "r"], texts, scores)
    settings = replace(QUICK, sampled=3, steered=0, count=2, margin=0.3)
    # r has one continuation that is not blank.
    pair_set = choose_pairs([batch], settings, {"scorer": "fake"}, replies=False)
    assert pair_set.pairs == (Pair("p", " x", " z"), Pair("q", " ok", " bad"))
    assert pair_set.record["rejected_score"] == pytest.approx((0.8 + 0.9) / 2)
    with pytest.raises(
        DialdownError, match=r"Only 1 of 2 pairs differ by 0\.7 among 3 prompts: lower pairs\.count"
    ):
        choose_pairs([batch], replace(settings, margin=0.7), {}, replies=False)


def test_no_reply_that_declines_is_preferred() -> None:
    no = " I'm sorry, but I can't help with that."
    texts = [[no, no, " x"], [" fine", no, " bad"], [" bad", " bad", no]]
    scores = [[0.0, 0.0, 0.1], [0.1, 0.0, 0.9], [0.9, 0.9, 0.5]]
    batch = Candidates(["p", "q", "r"], texts, scores)
    settings = replace(QUICK, sampled=3, steered=0, count=2, margin=0.3)
    # It may be what is rejected, where refusal is the concept; q has nothing to prefer.
    pair_set = choose_pairs([batch], settings, {}, replies=True)
    assert pair_set.pairs == (Pair("p", " fine", " bad"), Pair("r", " x", " bad"))
    assert count_pairs(batch, settings, replies=True) == 2
    refused = replace(batch, scores=[[0.9, 0.0, 0.1], [0.1, 0.0, 0.9], [0.2, 0.9, 0.5]])
    assert choose_pairs([refused], settings, {}, replies=True).pairs[0] == Pair("p", " fine", no)
    # What goes on with a text declines nothing, whatever it quotes.
    text = choose_pairs([batch], replace(settings, count=3), {}, replies=False)
    assert [pair.chosen for pair in text.pairs] == [no, no, " x"]


@pytest.mark.parametrize(
    ("settings", "direction", "message"),
    [
        (QUICK, None, "need a direction"),
        (
            QUICK,
            Direction("contrast", np.ones(tiny.WIDTH), "unembedding"),
            "does not record the norm of the residual",
        ),
        (replace(QUICK, margin=2.0), probe(), r"Only 0 of 6 pairs differ by 2\.0 among 16 prompts"),
    ],
)
def test_pairs_that_cannot_be_made(
    llama: LM, settings: PairSettings, direction: Any, message: str
) -> None:
    with pytest.raises(DialdownError, match=message):
        pairs_of(llama, PROMPTS, FakeScorer(), settings, direction=direction)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampled": 1, "steered": 0}, "needs two candidates"),
        ({"batch_size": 0}, "batch_size = 0: pass 1 or more"),
        ({"temperature": 0.0}, "temperature = 0.0"),
        ({"steering_strength": float("nan")}, "cannot be steered with steering_strength = nan"),
        ({"seed": -1}, "seed = -1: pass 0 or more"),
    ],
)
def test_settings_that_make_no_pairs(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DialdownError, match=message):
        replace(QUICK, **values)
