"""How a prompt is put before a model: as it stands, or as a user's turn of the tokenizer's chat
template followed by the start of a reply.

Every prompt becomes token ids here, so that what is sampled, trained on, judged and talked to is
one and the same text. Texts that are only read (of the probe, of perplexity) have no template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal, get_args

from jinja2 import TemplateError

from ..errors import DialdownError, nearest, one_line
from .tokens import encode

Template = Literal["chat", "none"]
"""What prompts are: turns of the chat template, or text that a model goes on with."""
AnyTemplate = Literal["auto", "chat", "none"]
"""The same to be asked for: `auto` is `chat` where the tokenizer has a template."""
Message = dict[str, str]

# Some templates write today's date. Every day would then have other ids than the day before, so
# they get the date that Llama's template names where it is told none. transformers passes text into
# a template and no functions, which is why this is a part of it.
CLOCK = "strftime_now"
SAME_DAY = f"{{% macro {CLOCK}(format) %}}26 Jul 2024{{% endmacro %}}"
# Two texts without a token in common at either end, by which what a template puts around is seen.
SEEN = ("The cat", "I know")


@dataclass(frozen=True)
class TurnMarks:
    """What a chat template puts around the turns of a conversation.

    Attributes:
        opening: ids before the first text of the user.
        around: how many ids are around one text of the user, the start of the reply included.
        asked, replied: the special tokens that end a text of the user, and a reply; None where
            something else does.
    """

    opening: tuple[int, ...]
    around: int
    asked: int | None
    replied: int | None


def has_chat_template(tokenizer: Any) -> bool:
    """Whether a tokenizer says how a conversation is written for its model."""
    return tokenizer.chat_template is not None


def check_template(tokenizer: Any, template: str, name: str) -> Template:
    """What prompts are for a tokenizer, where `template` is asked for."""
    if template not in get_args(AnyTemplate):
        raise DialdownError(
            f"Unknown template {template!r}: {nearest(template, get_args(AnyTemplate))}"
        )
    has = has_chat_template(tokenizer)
    if template == "none" or (template == "auto" and not has):
        return "none"
    if not has:
        raise DialdownError(
            f"The tokenizer of {name} has no chat template to make a user's turn of a prompt: pass "
            "template='none' or 'auto', or an instruct model."
        )
    templated_ids(tokenizer, [_user(SEEN[0])])
    return "chat"


def prompt_ids(
    tokenizer: Any, prompts: Sequence[str], template: Template, *, longest: int | None = None
) -> list[list[int]]:
    """The ids that a model goes on from after the first `longest` tokens of each prompt; what a
    template puts around them is left whole and does not count.
    """
    if template == "none":
        return [ids[:longest] for ids in encode(tokenizer, prompts)]
    if longest is not None:
        prompts = cut(tokenizer, prompts, longest)
    return encode(
        tokenizer, [_written(tokenizer, [_user(prompt)]) for prompt in prompts], special=False
    )


def cut(tokenizer: Any, texts: Sequence[str], longest: int) -> list[str]:
    """The start of each text that has `longest` tokens at most, also once it is read again."""
    return [
        text if len(ids) <= longest else _cut(tokenizer, ids, longest)
        for text, ids in zip(texts, encode(tokenizer, texts), strict=True)
    ]


def _cut(tokenizer: Any, ids: Sequence[int], longest: int) -> str:
    for length in range(longest, 0, -1):
        # Half of a character is decoded as a sign of its own.
        text = str(tokenizer.decode(ids[:length], skip_special_tokens=True)).rstrip("\ufffd")
        if len(encode(tokenizer, [text])[0]) <= longest:
            return text
    return ""


def continuation_ids(
    tokenizer: Any, prompt: str, text: str, template: Template = "none"
) -> list[int]:
    """The ids that `text` has after `prompt`, whose own ids stay as they are while decoding.

    Where a token would span the boundary ("dial" continued by "led"), the text is encoded after a
    line break, because a SentencePiece tokenizer would put a space before it alone.
    """
    if template == "chat":
        written = _written(tokenizer, [_user(prompt)])
        head, whole = encode(tokenizer, [written, written + text], special=False)
        if whole[: len(head)] == head:
            return whole[len(head) :]
    for before in (prompt, "\n", "") if template == "none" else ("\n", ""):
        head, whole = encode(tokenizer, [before, before + text])
        if whole[: len(head)] == head:
            return list(whole[len(head) :])
    raise DialdownError(
        f"{type(tokenizer).__name__} ends every text with a special token, so no continuation can "
        "be cut out: load the tokenizer with add_eos_token=False."
    )


def turn_marks(tokenizer: Any) -> TurnMarks:
    """What the chat template puts around the turns: what stays where their texts change."""
    prompts = [templated_ids(tokenizer, [_user(text)]) for text in SEEN]
    talked = [
        templated_ids(tokenizer, [_user(SEEN[0]), _assistant(SEEN[0]), _user(text)])
        for text in SEEN
    ]
    opening = _shared(prompts)
    answer = _shared([row[::-1] for row in prompts])[::-1]
    # From the last text of the user back to the reply, which is that text again.
    before = _shared(talked)
    marks = prompts[0][len(opening) : len(prompts[0]) - len(answer)]
    places = [at for at in range(len(before)) if before[at : at + len(marks)] == marks]
    again = before[places[-1] + len(marks) :] if marks and places else []
    special = tokenizer.added_tokens_decoder
    asked_end, replied_end = (
        part[0] if part and part[0] in special else None for part in (answer, again)
    )
    return TurnMarks(tuple(opening), len(opening) + len(answer), asked_end, replied_end)


def _shared(rows: Sequence[Sequence[int]]) -> list[int]:
    """What all rows begin with."""
    columns = zip(*rows, strict=False)
    return [column[0] for column in takewhile(lambda column: len({*column}) == 1, columns)]


def templated_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """The ids of a conversation by the chat template, up to where a reply begins."""
    return encode(tokenizer, [_written(tokenizer, messages)], special=False)[0]


def messages_of(turns: Sequence[tuple[str, str]], message: str) -> list[Message]:
    """Everything said so far, as (message, reply) pairs, and what the user says now."""
    messages = [part for prompt, reply in turns for part in (_user(prompt), _assistant(reply))]
    return [*messages, _user(message)]


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _written(tokenizer: Any, messages: Sequence[Message]) -> str:
    try:
        template = tokenizer.get_chat_template()
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                chat_template=SAME_DAY + template if CLOCK in template else template,
                add_generation_prompt=True,
                tokenize=False,
                # What a model thinks before it replies is not a reply.
                enable_thinking=False,
            )
        )
    except (
        TemplateError,
        TypeError,
        ValueError,
        LookupError,
        ArithmeticError,
        AttributeError,
        RecursionError,
    ) as error:
        raise DialdownError(
            f"The chat template of the tokenizer cannot be used ({one_line(error)}): mend "
            "chat_template in the base's folder, or remove it to go on with plain text."
        ) from error
