"""Talk to a model and to its edit at once: `dialdown chat`, two columns, one model in memory, a
dial between turns.

The edit acts by hooks at every position (METHOD §5, `strict`), so what the edited side says is what
the exported checkpoint would say. Each side answers to its own earlier replies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jinja2 import TemplateError
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from ..data.reading import whole_text
from ..errors import DialdownError, enough_memory, nearest
from ..interventions.intervention import Intervention
from ..models.lm import LM
from ..models.tokens import encode
from ..terminal import Terminal, printable

COMMANDS = {
    "/strength": "the dial: 0 is the base model, 1 the whole edit",
    "/tokens": "the longest reply, in tokens",
    "/temperature": "0 is greedy; above, replies are sampled",
    "/seed": "the seed of sampled replies",
    "/reset": "forget the conversation",
    "/help": "this list",
    "/quit": "leave (so do Ctrl-C and Ctrl-D)",
}
SAMPLING = ("temperature", "top_p", "top_k")


@dataclass(frozen=True)
class ChatSettings:
    """What can be changed between turns.

    Attributes:
        strength: of the edit, see `Intervention.at`.
        tokens: the longest reply, in tokens.
        temperature: 0 is greedy.
        seed: of sampled replies; both sides draw the same numbers.
    """

    strength: float = 1.0
    tokens: int = 128
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength):
            raise DialdownError(
                f"A strength of {self.strength} cannot be applied: pass a finite number, 1 for the "
                "whole edit."
            )
        if self.tokens < 1:
            raise DialdownError(f"A reply of {self.tokens} tokens is none: pass 1 or more.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise DialdownError(
                f"A temperature of {self.temperature} cannot be sampled at: pass 0 for greedy "
                "replies, or a number such as 0.8."
            )
        if not 0 <= self.seed < 1 << 32:
            raise DialdownError(
                f"A seed of {self.seed} is out of range: pass a whole number from 0 to "
                f"{(1 << 32) - 1}."
            )


Turns = list[tuple[str, str]]
"""What was said so far: (message, reply) pairs."""


def chat(
    lm: LM,
    edit: Intervention,
    *,
    settings: ChatSettings | None = None,
    console: Console | None = None,
    read: Callable[[str], str] = input,
) -> None:
    """Read messages and commands until the user leaves; show each reply of the base and of the
    edited model side by side.

    A mistake (an unknown command, a value that cannot be, a conversation that is too long) is one
    sentence on the console, and the chat goes on.

    Args:
        lm: the base model.
        edit: what the edited side runs under, at the strength of the settings.
        settings: what to start with.
        console: where to write.
        read: asks for a line with a prompt; EOFError and KeyboardInterrupt leave the chat.
    """
    settings = settings or ChatSettings()
    console = console or Terminal()
    base: Turns = []
    edited: Turns = []
    console.print(
        printable(f"{lm.name}, and the same under {edit.name}. /help lists the commands."),
        markup=False,
        highlight=False,
    )
    try:
        while True:
            line = read(f"{settings.strength:g}> ").strip()
            command = line.split()[0] if line.startswith("/") else ""
            if command == "/quit":
                break
            try:
                if command == "/reset":
                    base.clear()
                    edited.clear()
                    console.print("The conversation starts again.")
                elif command:
                    settings, said = _obey(settings, command, line.removeprefix(command).strip())
                    console.print(said, markup=False, highlight=False)
                elif line:
                    with (
                        console.status("replying ...", spinner="line"),
                        enough_memory("lower /tokens, or /reset"),
                    ):
                        left = reply(lm, base, line, settings)
                        right = reply(lm, edited, line, settings, edit.at(settings.strength))
                    base.append((line, left))
                    edited.append((line, right))
                    console.print(_columns(left, right, settings.strength))
            except DialdownError as error:
                console.print(printable(str(error)), style="red", markup=False, highlight=False)
    except (EOFError, KeyboardInterrupt):
        console.print()
    console.print("Goodbye.")


def reply(
    lm: LM, turns: Turns, message: str, settings: ChatSettings, edit: Intervention | None = None
) -> str:
    """What the model says to `message` after `turns`.

    The tokenizer's chat template is used where it has one; else the model goes on with the plain
    text.

    Args:
        lm: the model.
        turns: what was said before, by this side.
        message: what the user says now.
        settings: length and sampling of the reply.
        edit: what acts while the model replies, as it is; None for the base model.

    Raises:
        DialdownError: the conversation has grown out of the model's context, or the edit is of
            another model.
    """
    ids = _encode(lm.tokenizer, turns, whole_text(message, "The message")).to(lm.device)
    if not ids.shape[1]:
        raise DialdownError(
            f"The tokenizer of {lm.name} makes no tokens of the message: write another one."
        )
    if ids.shape[1] + settings.tokens > lm.context:
        raise DialdownError(
            f"The conversation has {ids.shape[1]} tokens, which with {settings.tokens} new ones "
            "exceed the context of "
            f"{lm.name} ({lm.context}): start again with /reset, or lower /tokens."
        )
    with edit.measured(lm) if edit else nullcontext():
        new = _generate(lm, ids, settings, turn=len(turns))
    # SentencePiece tokenizers drop the space a text starts with, so a reply is decoded after what
    # it continues.
    parts = (ids[0], torch.cat([ids[0], new]), new)
    before, whole, alone = (
        str(lm.tokenizer.decode(part, skip_special_tokens=True)) for part in parts
    )
    return whole.removeprefix(before) if whole.startswith(before) else alone


def _encode(tokenizer: Any, turns: Turns, message: str) -> Tensor:
    """(1, n) token ids of everything said so far and `message`."""
    if tokenizer.chat_template is None:
        text = "\n".join([*(said + answered for said, answered in turns), message])
        return torch.tensor(encode(tokenizer, [text]))
    roles = ("user", "assistant")
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(roles, turn, strict=True)
    ]
    messages.append({"role": "user", "content": message})
    encoded = _templated(tokenizer, messages)
    ids: Tensor = encoded["input_ids"]
    return ids


def _templated(tokenizer: Any, messages: list[dict[str, str]]) -> Any:
    """What the chat template makes of a conversation; a template is a program of the model's maker,
    and may fail like one.
    """
    try:
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
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
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DialdownError(
            f"The chat template of the tokenizer cannot be used ({reason}): mend chat_template in "
            "the base's folder, or remove it to go on with plain text."
        ) from error


def _generate(lm: LM, ids: Tensor, settings: ChatSettings, *, turn: int) -> Tensor:
    """(n,) new token ids, without the one that ended them."""
    sampling: dict[str, Any] = {"do_sample": settings.temperature > 0}
    # What a checkpoint's own configuration says about sampling would come with a warning where
    # nothing is sampled.
    sampling |= (
        {"temperature": settings.temperature} if settings.temperature else dict.fromkeys(SAMPLING)
    )
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode():
        torch.manual_seed(settings.seed + turn)
        out: Tensor = lm.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=settings.tokens,
            pad_token_id=lm.tokenizer.pad_token_id,
            eos_token_id=sorted(lm.eos) or None,
            **sampling,
        )
    new = out[0, ids.shape[1] :]
    return new[:-1] if int(new[-1]) in lm.eos else new


def _columns(left: str, right: str, strength: float) -> Table:
    table = Table("base", f"edited, strength {strength:g}", expand=True)
    for column in table.columns:
        column.ratio = 1
    table.add_row(*(Text(printable(said)) for said in (left, right)))
    return table


def _obey(settings: ChatSettings, command: str, value: str) -> tuple[ChatSettings, str]:
    """The settings after a command, and what to say about it.

    Raises:
        DialdownError: there is no such command, or its value cannot be.
    """
    if command not in COMMANDS:
        raise DialdownError(f"Unknown command {command!r}: {nearest(command, COMMANDS)}")
    if command == "/help":
        return settings, "\n".join(f"{name:<13}{what}" for name, what in COMMANDS.items())
    name = command.removeprefix("/")
    if not value:
        return settings, f"{name} {getattr(settings, name)}"
    number = int if name in ("tokens", "seed") else float
    try:
        changed: dict[str, Any] = {name: number(value)}
    except ValueError as error:
        kind = "whole number" if number is int else "number"
        raise DialdownError(
            f"{command} takes one {kind} and got {value!r}: pass one, or nothing to see what is "
            "set."
        ) from error
    return replace(settings, **changed), f"{name} {changed[name]}"
