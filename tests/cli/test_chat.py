"""The side-by-side chat, driven by a list of lines, against a naive greedy loop under the same
intervention.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dialdown import DialdownError
from dialdown.cli import chat as chat_module
from dialdown.cli.chat import ChatSettings, chat
from dialdown.interventions import Intervention, untouched
from dialdown.models import LM
from dialdown.terminal import Terminal
from helpers import tiny
from helpers.tiny import unchanged

SHORT = ChatSettings(tokens=6)


TEMPLATE = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def scale(lm: LM, *, seed: int = 0) -> Intervention:
    rng = np.random.default_rng(seed)
    gain = 1 + rng.standard_normal((lm.view.n_layers, lm.view.n_neurons))
    return Intervention(
        "halved", "scale", gain, np.zeros_like(gain), np.ones_like(gain, dtype=bool)
    )


def steering(lm: LM) -> Intervention:
    return Intervention(
        "steered", "steer", vector=5 * np.random.default_rng(1).standard_normal(lm.view.d_model)
    )


def reply(*arguments: Any) -> str:
    return chat_module.reply(*arguments).text


def greedy(lm: LM, text: str, edit: Intervention | None, tokens: int) -> str:
    """The most likely continuation of a text, every token from a forward pass over everything
    before it.
    """
    ids: list[int] = lm.tokenizer(text)["input_ids"]
    new: list[int] = []
    with edit.applied(lm) if edit else nullcontext():
        while len(new) < tokens:
            token = int(tiny.logits(lm, torch.tensor([[*ids, *new]]))[0, -1].argmax())
            if token in lm.eos:
                break
            new.append(token)
    return str(lm.tokenizer.decode(new, skip_special_tokens=True))


def talk(lm: LM, edit: Intervention, lines: Sequence[str], start: ChatSettings = SHORT) -> str:
    """What a chat of these lines prints; it ends with Ctrl-D."""
    return drive(lm, edit, reader(lines), start)


def drive(
    lm: LM, edit: Intervention, read: Callable[[str], str], start: ChatSettings = SHORT
) -> str:
    output = io.StringIO()
    chat(lm, edit, settings=start, console=Terminal(file=output, width=120), read=read)
    return output.getvalue()


def reader(lines: Sequence[str], prompts: list[str] | None = None) -> Callable[[str], str]:
    waiting = iter(lines)

    def read(prompt: str) -> str:
        if prompts is not None:
            prompts.append(prompt)
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    return read


def cells(printed: str) -> list[tuple[str, str]]:
    """(base, edited) of each table row of a chat."""
    rows = [line[1:-1].split(line[0]) for line in printed.splitlines() if line[:1] in ("│", "┃")]
    # Where a reply's characters have no agreed width, rich may leave a line empty.
    return [(left.strip(), right.strip()) for left, right in rows if "".join((left, right)).strip()]


@pytest.mark.parametrize("make", [scale, steering])
def test_a_reply_is_the_greedy_continuation_under_the_edit(named: LM, make: Any) -> None:
    edit = make(named)
    base, edited = (reply(named, [], "the cat", SHORT, side) for side in (None, edit))
    assert base == greedy(named, "the cat", None, 6)
    assert edited == greedy(named, "the cat", edit, 6)
    assert base != edited


def test_without_a_template_each_turn_is_a_line_of_plain_text(llama: LM) -> None:
    turns = [("the cat", " sat"), ("a dog", " ran")]
    assert reply(llama, turns, "he", SHORT) == greedy(llama, "the cat sat\na dog ran\nhe", None, 6)


def test_the_tokenizers_template_is_used_where_there_is_one() -> None:
    lm = tiny.lm("gpt2", bos=True)
    lm.tokenizer.chat_template = TEMPLATE
    lm.tokenizer.backend_tokenizer.post_processor = (
        tiny.tokenizer().backend_tokenizer.post_processor
    )
    said = reply(lm, [("the cat", "sat")], "he", SHORT)
    assert said == greedy(lm, "[user]the cat[assistant]sat[user]he[assistant]", None, 6)


def test_a_template_gets_no_second_bos() -> None:
    """The template writes the BOS itself; the tokenizer, which puts one before plain texts, must
    not.
    """
    lm = tiny.lm("llama", bos=True)
    lm.tokenizer.chat_template = "<bos>" + TEMPLATE
    seen: list[Any] = []
    handle = lm.model.register_forward_pre_hook(
        lambda m, a, k: seen.append(k["input_ids"]), with_kwargs=True
    )
    reply(lm, [], "he", SHORT)
    handle.remove()
    assert seen[0][0].tolist() == [1, *tiny.tokenizer()("[user]he[assistant]")["input_ids"]]


def test_a_reply_that_was_cut_is_said_to_be(gpt2: LM) -> None:
    printed = talk(gpt2, scale(gpt2), ["the cat"])
    assert "base and edited cut at 6 tokens: /tokens 12 lets replies go on" in printed


def test_each_side_goes_on_from_its_own_replies(gpt2: LM) -> None:
    edit = scale(gpt2)
    with unchanged(gpt2):
        printed = talk(gpt2, edit, ["the cat", "he"])
    left, right = reply(gpt2, [], "the cat", SHORT), reply(gpt2, [], "the cat", SHORT, edit)
    assert left != right
    expected = [
        ("base", "edited, strength 1"),
        (left, right),
        ("base", "edited, strength 1"),
        (
            reply(gpt2, [("the cat", left)], "he", SHORT),
            reply(gpt2, [("the cat", right)], "he", SHORT, edit),
        ),
    ]
    assert shown(expected) == cells(printed)


def shown(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Replies as a table shows them: no control characters, one line of text."""
    left, right = zip(*rows, strict=True)
    plain = [
        ["".join(c for c in cell if not controls(c)).strip() for cell in side]
        for side in (left, right)
    ]
    return list(zip(*plain, strict=True))


def controls(character: str) -> bool:
    return unicodedata.category(character) == "Cc"


def test_the_dial_moves_between_turns(gpt2: LM) -> None:
    edit, prompts = scale(gpt2), []  # type: ignore[var-annotated]
    printed = drive(
        gpt2,
        edit,
        reader(["/strength 0", "the cat", "/reset", "/strength 0.5", "the cat"], prompts),
    )
    assert prompts == [*(f"strength {dial}> " for dial in ("1", "0", "0", "0", "0.5", "0.5"))]
    base = reply(gpt2, [], "the cat", SHORT)
    half = reply(gpt2, [], "the cat", SHORT, edit.at(0.5))
    expected = [
        ("base", "edited, strength 0"),
        (base, base),
        ("base", "edited, strength 0.5"),
        (base, half),
    ]
    assert base != half
    assert shown(expected) == cells(printed)


def test_again_asks_the_same_at_another_strength(gpt2: LM) -> None:
    edit = scale(gpt2)
    printed = cells(talk(gpt2, edit, ["the cat", "he", "/strength 0", "/again", "/again"]))
    heads, replies = printed[::2], printed[1::2]
    assert heads[-1] == ("base", "edited, strength 0")
    # The base replies to the last message as before; the turns that were taken back do not count.
    assert replies[1][0] == replies[2][0] == replies[3][0]
    assert replies[2] == replies[3]
    # An /again that fails takes nothing back.
    failed = talk(gpt2, edit, ["the cat", "he", "/tokens 1000", "/again", "/tokens 6", "/again"])
    assert cells(failed)[-1] == replies[1]
    assert "no message to repeat yet" in talk(gpt2, edit, ["/again"]).replace("\n", " ")


def test_reset_forgets(gpt2: LM) -> None:
    said = talk(gpt2, scale(gpt2), ["the cat", "he", "/reset", "the cat"])
    assert "The conversation starts again." in said
    printed = cells(said)
    assert printed[1] == printed[5]
    assert printed[1] != printed[3]


def test_sampled_replies_are_reproduced_by_their_seed(gpt2: LM) -> None:
    hot = replace(SHORT, temperature=2.0, tokens=12)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    answer, same, other = (
        reply(gpt2, [], "the cat", replace(hot, seed=seed)) for seed in (1, 1, 2)
    )
    assert answer == same != other
    assert torch.equal(state, torch.get_rng_state())
    assert answer != reply(gpt2, [], "the cat", replace(hot, temperature=0.0))
    # The same draws on both sides, so only the edit makes a difference.
    assert answer == reply(gpt2, [], "the cat", replace(hot, seed=1), scale(gpt2).at(0))


def test_commands_change_what_they_name(gpt2: LM) -> None:
    lines = [
        "/tokens 9",
        "/temperature 1.5",
        "/seed 1234567",
        "the cat",
        "/tokens",
        "/temperature",
        "/seed",
        "/strength",
    ]
    printed = talk(gpt2, scale(gpt2), lines)
    wanted = ChatSettings(tokens=9, temperature=1.5, seed=1234567)
    for default in ({"tokens": 6}, {"temperature": 0.0}, {"seed": 0}):
        assert reply(gpt2, [], "the cat", replace(wanted, **default)) != reply(
            gpt2, [], "the cat", wanted
        )
    expected = (reply(gpt2, [], "the cat", wanted), reply(gpt2, [], "the cat", wanted, scale(gpt2)))
    assert shown([expected]) == cells(printed)[1:]
    assert printed.splitlines()[-6:-1] == [
        "tokens 9",
        "temperature 1.5",
        "seed 1234567",
        "strength 1.0",
        "",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/strenght 2", "Unknown command '/strenght': did you mean '/strength'?"),
        ("/", "Unknown command '/': known are"),
        ("/strength half", "/strength takes a number and got 'half'"),
        ("/strength nan", "A strength of nan cannot be applied"),
        ("/tokens 2.5", "/tokens takes a whole number and got '2.5'"),
        ("/tokens 0", "A reply of 0 tokens is none"),
        ("/temperature -1", "A temperature of -1.0 cannot be sampled at"),
        ("/seed -1", "A seed of -1 is out of range"),
        ("/tokens 1000", "exceed the context of tiny-gpt2 (96)"),
    ],
)
def test_a_mistake_is_one_sentence_and_the_chat_goes_on(gpt2: LM, line: str, said: str) -> None:
    printed = talk(gpt2, scale(gpt2), [line, "the cat", "/tokens 6", "/reset", "the cat"])
    assert said in printed.replace("\n", " ")
    assert cells(printed)[-1] == cells(talk(gpt2, scale(gpt2), ["the cat"]))[-1]


def test_a_conversation_that_is_too_long_can_be_shortened(gpt2: LM) -> None:
    printed = talk(gpt2, scale(gpt2), ["cat " * 100, "the cat"])
    assert "start again with /reset" in printed.replace("\n", " ")
    # The message that did not fit is not part of the conversation.
    assert cells(printed) == cells(talk(gpt2, scale(gpt2), ["the cat"]))


def test_help_names_every_command_and_empty_lines_are_nothing(gpt2: LM) -> None:
    printed = talk(gpt2, scale(gpt2), ["", "  ", "/help"])
    for command in ("/strength", "/tokens", "/temperature", "/seed", "/reset", "/help", "/quit"):
        assert command in printed
    assert not cells(printed)


def test_leaving_is_polite(gpt2: LM) -> None:
    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    prompts: list[str] = []
    for read in (interrupted, reader([]), reader(["/quit", "the cat"], prompts)):
        printed = drive(gpt2, scale(gpt2), read)
        assert printed.endswith("Goodbye.\n")
        assert not cells(printed)
    assert len(prompts) == 1


def test_ctrl_c_in_a_reply_leaves_no_hook() -> None:
    lm = tiny.lm("gpt2")
    passes = 0

    def interrupt(module: Any, args: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == SHORT.tokens + 2:
            raise KeyboardInterrupt

    handle = lm.model.register_forward_pre_hook(interrupt)
    printed = talk(lm, scale(lm), ["the cat", "never asked"])
    handle.remove()
    assert passes == SHORT.tokens + 2, "interrupted while the edited side replies"
    assert printed.endswith("Goodbye.\n")
    assert not cells(printed)
    assert not any(m._forward_pre_hooks for m in lm.model.modules())


MODEL = tiny.lm("gpt2")


@settings(max_examples=20, deadline=None)
@given(
    text=st.text(min_size=1, max_size=12).filter(
        lambda text: text.strip() and not text.strip().startswith("/")
    )
)
def test_whatever_is_said_the_dial_at_zero_is_the_base_model(text: str) -> None:
    printed = talk(MODEL, scale(MODEL), [text], replace(SHORT, strength=0.0))
    rows = cells(printed)[1:]
    assert "Goodbye." in printed
    assert all(left == right for left, right in rows)
    assert not any(controls(c) for c in printed if c != "\n"), (
        "nothing a model says acts on the terminal"
    )


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_settings_that_cannot_be_are_refused(strength: float) -> None:
    with pytest.raises(DialdownError, match="pass a finite number"):
        ChatSettings(strength=strength)


def test_chat_shows_names_without_what_acts(llama: tiny.LM) -> None:
    from dataclasses import replace

    output = io.StringIO()
    lines = iter(["/\x1b[31mhelp"])

    def read(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    named, edit = replace(llama, name="base\x1b[2J"), replace(untouched(), name="edit\x1b]0;x\x07")
    chat(named, edit, console=Terminal(file=output, width=200), read=read)
    assert "\x1b" not in output.getvalue()
    assert "\x07" not in output.getvalue()


@pytest.mark.parametrize(
    "template",
    [
        "{{ oops",
        "{% for m in messages %}",
        "{{ raise_exception('no system role') }}",
        "{{ messages[7]['content'] }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{{ ''.__class__.__mro__ }}",
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
        "",
    ],
)
def test_a_broken_chat_template_is_one_sentence(template: str) -> None:
    lm = tiny.lm("llama")
    lm.tokenizer.chat_template = template
    with pytest.raises(DialdownError, match=r"chat template|makes no tokens"):
        reply(lm, [], "hello", ChatSettings(tokens=1))


def test_half_a_character_is_no_message(llama: tiny.LM) -> None:
    with pytest.raises(DialdownError, match="The message holds half of a character"):
        reply(llama, [], "hello \ud83d", ChatSettings(tokens=1))
