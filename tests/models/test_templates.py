"""Prompts as turns of a chat template: the ids against transformers' own, what is cut, what ends a
reply, and templates that cannot be used.
"""

from __future__ import annotations

from datetime import date

import pytest
import torch

import dialdown as dd
from dialdown import DialdownError
from dialdown.evaluation.evaluator import Evaluator, Suite
from dialdown.interventions import untouched
from dialdown.models import LM, Decoder
from dialdown.models.replies import conversation_ids
from dialdown.models.templates import cut
from dialdown.training.dpo import encode
from dialdown.training.generated_text import given_tokens
from dialdown.training.make_pairs import candidates
from dialdown.training.settings import PairSettings
from helpers import chat_templates, tiny
from helpers.scorers import FakeScorer

PROMPTS = ["the cat", "a cat sat; the cat ate", "hé 🙂 the cat"]
NAMES = [*chat_templates.TEMPLATES]


@pytest.fixture(scope="module", params=NAMES)
def chat(request: pytest.FixtureRequest) -> LM:
    return chat_templates.lm(request.param)


def by_transformers(lm: LM, *messages: tuple[str, str], reply: bool = True) -> list[int]:
    ids: list[int] = lm.tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in messages],
        add_generation_prompt=reply,
        return_dict=True,
    )["input_ids"]
    return ids


def test_a_prompt_is_a_turn_of_the_user_and_the_start_of_a_reply(chat: LM) -> None:
    expected = [by_transformers(chat, ("user", prompt)) for prompt in PROMPTS]
    assert chat.prompt_ids(PROMPTS) == expected
    assert Decoder(chat, PROMPTS, max_prompt_tokens=64, max_new_tokens=4).encoded == expected
    for ids in expected:
        assert ids.count(chat.tokenizer.bos_token_id) <= 1


def test_a_conversation_is_made_by_the_same_function(chat: LM) -> None:
    expected = by_transformers(chat, ("user", "hi"), ("assistant", "ho"), ("user", "the cat"))
    assert conversation_ids(chat, [("hi", "ho")], "the cat", tokens=4)[0].tolist() == expected
    first = conversation_ids(chat, [], "the cat", tokens=4)[0].tolist()
    assert [first] == chat.prompt_ids(["the cat"])


def test_without_a_template_a_prompt_is_the_text_with_its_bos() -> None:
    lm = LM.of(tiny.model("llama"), tiny.tokenizer(bos=True))
    assert lm.template == "none"
    assert lm.prompt_ids(PROMPTS) == [lm.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    assert lm.prompt_ids(PROMPTS, 3) == [
        lm.tokenizer(prompt)["input_ids"][:3] for prompt in PROMPTS
    ]


@pytest.mark.parametrize("longest", [2, 3, 6, 9, 100])
def test_only_the_text_of_the_user_is_cut(chat: LM, longest: int) -> None:
    texts = cut(chat.tokenizer, PROMPTS, longest)
    for text, prompt, ids in zip(texts, PROMPTS, chat.prompt_ids(PROMPTS, longest), strict=True):
        assert prompt.startswith(text)
        assert len(chat.encode([text])[0]) <= longest
        assert ids == by_transformers(chat, ("user", text))
    if longest == 100:
        assert texts == PROMPTS


def test_a_text_is_cut_between_characters() -> None:
    tokenizer = tiny.tokenizer()
    whole = "a🙂b"
    for longest in range(1, 7):
        [text] = cut(tokenizer, [whole], longest)
        assert whole.startswith(text)


def test_training_reads_the_ids_that_were_sampled(chat: LM) -> None:
    settings = PairSettings(count=1, sampled=2, steered=0, max_new_tokens=6, batch_size=3)
    sampled = candidates(
        chat, PROMPTS, lambda texts: torch.zeros(len(texts)).numpy(), settings, 0,
        max_prompt_tokens=5,
    )  # fmt: skip
    decoder = Decoder(chat, sampled.prompts, max_prompt_tokens=5, max_new_tokens=6)
    assert decoder.encoded == chat.prompt_ids(PROMPTS, 5)
    pairs = [dd.Pair(prompt, " the cat", "a cat") for prompt in sampled.prompts]
    examples = encode(chat.model, chat.tokenizer, pairs, max_tokens=200, template="chat")
    assert [example["prompt_ids"] for example in examples] == decoder.encoded


@pytest.mark.parametrize("name", NAMES)
def test_a_reply_ends_where_its_turn_does(name: str) -> None:
    chat = chat_templates.lm(name)
    end = chat.tokenizer.convert_tokens_to_ids(chat_templates.ENDS[name])
    assert end in chat.eos
    assert chat.tokenizer.eos_token_id in chat.eos
    assert chat.turns is not None
    assert chat.turns.replied == chat.turns.asked == end
    tokens = Decoder(chat, PROMPTS, max_prompt_tokens=64, max_new_tokens=30).run()
    assert all(end not in row for row in tokens)


def test_a_model_writes_both_sides_from_where_the_user_begins(chat: LM) -> None:
    assert chat.turns is not None
    start = [*chat.turns.opening]
    for prompt in ("the cat", "sat"):
        assert by_transformers(chat, ("user", prompt))[: len(start)] == start
    texts = dd.own_text(chat, texts=60, tokens=40)
    assert {len(text) for text in texts} == {len(start) + 39}
    assert all(text[: len(start)] == start for text in texts)
    written = [token for text in texts for token in text[len(start) :]]
    assert chat.turns.replied in written
    assert chat.tokenizer.eos_token_id not in written


def test_prices_leave_out_what_the_template_says(chat: LM) -> None:
    """A model is never asked to write its own system turn, so nothing is priced there."""
    texts = dd.own_text(chat, texts=2, tokens=4)
    assert given_tokens(chat, texts) == len(chat.opening)
    assert given_tokens(chat, [[5, 6, 7]]) == 1
    raw = LM.of(chat.model, chat.tokenizer)
    assert raw.opening == [1]
    priced, whole = (dd.fisher_information(lm, texts, draws=400) for lm in (chat, raw))
    # The sum over all positions is that over the template's and that over what was written.
    written, read = 4, len(texts[0])
    assert (whole * read >= 0.5 * priced * written).all()
    assert (whole * read).sum() > 1.2 * (priced * written).sum()


def test_continuations_of_a_chat_follow_its_prompt(chat: LM) -> None:
    decoder = Decoder(chat, PROMPTS, max_prompt_tokens=64, max_new_tokens=5)
    tokens = decoder.run()
    for text, ids in zip(decoder.texts(tokens), tokens, strict=True):
        assert text == chat.tokenizer.decode(ids, skip_special_tokens=True)


def test_a_row_under_a_template_counts_refusals() -> None:
    suite = Suite(PROMPTS, [("the cat", "sat")], "the cat sat " * 30, [FakeScorer()], window=16)
    measured = {
        name: Evaluator(lm, suite).row(untouched(), "strict")
        for name, lm in (("chat", chat_templates.lm("chatml")), ("none", tiny.lm("llama")))
    }
    assert measured["chat"].metrics["refusal"].mean == 0
    assert "refusal" not in measured["none"].metrics


def test_the_date_in_a_template_is_always_the_same() -> None:
    tokenizer = chat_templates.tokenizer("{{ strftime_now('%d %b %Y') }}{{ messages[0].content }}")
    lm = LM.of(chat_templates.model(), tokenizer, template="chat")
    assert f"{date.today():%d %b %Y}" not in tokenizer.decode(lm.prompt_ids(["a"])[0])


@pytest.mark.parametrize("template", ["auto", "chat"])
def test_a_template_is_used_where_there_is_one(template: str) -> None:
    tokenizer = chat_templates.tokenizer(chat_templates.CHATML)
    lm = dd.load(chat_templates.model(), tokenizer=tokenizer, template=template)
    assert lm.template == "chat"
    assert lm.describe()["template"] == "chat"
    assert lm.twin().template == "chat"


BAD = {
    "no template": (None, "chat", "has no chat template"),
    "an unknown kind": (chat_templates.CHATML, "chats", "Unknown template 'chats'"),
    "no lone turn of a user": (
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('a system turn first') }}"
        "{% endif %}",
        "auto",
        "cannot be used .*a system turn first",
    ),
    "half a template": ("{% for message in messages %}", "chat", "cannot be used"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_template_that_cannot_be_used_is_a_sentence(case: str) -> None:
    text, template, words = BAD[case]
    with pytest.raises(DialdownError, match=words):
        dd.load(chat_templates.model(), tokenizer=chat_templates.tokenizer(text), template=template)


def test_auto_without_a_template_is_none() -> None:
    assert dd.load(tiny.model("llama"), tokenizer=tiny.tokenizer(), template="auto").template == (
        "none"
    )


def test_a_prompt_that_its_template_makes_too_long_is_refused() -> None:
    lm = chat_templates.lm("chatml", max_position_embeddings=40)
    with pytest.raises(DialdownError, match=r"of them the chat template's.*context"):
        Decoder(lm, PROMPTS, max_new_tokens=4)


def test_half_a_character_is_refused_in_a_turn_too(chat: LM) -> None:
    with pytest.raises(DialdownError, match="half of a character"):
        chat.prompt_ids(["a \ud83d"])
