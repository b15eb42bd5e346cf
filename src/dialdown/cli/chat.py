"""Talk to a model and to its edit at once: `dialdown chat`, two columns, one model in memory, a
dial between turns.

The edit acts by hooks at every position (METHOD §5, `strict`), so what the edited side says is what
the exported checkpoint would say. Each side answers to its own earlier replies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import DialdownError, enough_memory, nearest
from ..interventions.edit_file import check_strength
from ..interventions.intervention import Intervention
from ..models.lm import LM
from ..models.replies import Reply, ReplySettings, Turns, conversation_ids, generate
from ..terminal import Terminal, printable

COMMANDS = {
    "/strength": "the dial: 0 is the base model, 1 the whole edit; what was said stays (/reset)",
    "/again": "your last message once more, at the strength that is set",
    "/tokens": "the longest reply, in tokens",
    "/temperature": "0 is greedy; above, replies are sampled",
    "/seed": "the seed of sampled replies",
    "/reset": "forget the conversation",
    "/help": "this list",
    "/quit": "leave (so do Ctrl-C and Ctrl-D)",
}


@dataclass(frozen=True)
class ChatSettings(ReplySettings):
    """What can be changed between turns. Both sides draw the same numbers.

    Attributes:
        strength: of the edit, see `Intervention.at`.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strength(self.strength)


def chat(
    lm: LM,
    edit: Intervention,
    *,
    settings: ChatSettings | None = None,
    console: Console | None = None,
    read: Callable[[str], str] = input,
) -> None:
    """Show each reply of the base and of the edited model side by side, until the user leaves. A
    mistake is one sentence on the console, and the chat goes on.

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
        printable(
            f"{lm.name}, and the same with the edit {edit.name}. Each side goes on from its own "
            "replies. /strength 0.5 moves the dial, /again repeats your last message there, /help "
            "lists the commands."
        ),
        highlight=False,
    )
    try:
        while True:
            line = read(f"strength {settings.strength:g}> ").strip()
            command = line.split()[0] if line.startswith("/") else ""
            if command == "/quit":
                break
            try:
                if command == "/reset":
                    base.clear()
                    edited.clear()
                    console.print("The conversation starts again.")
                elif command and command != "/again":
                    settings, answer = _obey(settings, command, line.removeprefix(command).strip())
                    console.print(answer, highlight=False)
                elif line:
                    heard = len(base)
                    if command == "/again":
                        heard, line = len(base) - 1, _last(base)
                    dialled, before = edit.at(settings.strength), (base[:heard], edited[:heard])
                    with console.status("replying ...", spinner="line"):
                        left, right = _replies(lm, dialled, before, line, settings)
                    # Only now, so that a reply that cannot be leaves the conversation as it was.
                    base[heard:], edited[heard:] = [(line, left.text)], [(line, right.text)]
                    console.print(_columns(left, right, settings))
            except DialdownError as error:
                console.print(printable(str(error)), style="red", highlight=False)
    except (EOFError, KeyboardInterrupt):
        console.print()
    console.print("Goodbye.")


def _replies(
    lm: LM, edit: Intervention, before: tuple[Turns, Turns], line: str, settings: ChatSettings
) -> tuple[Reply, Reply]:
    """What the base and the edited model say, each after its own turns before."""
    with enough_memory("lower /tokens, or /reset"):
        left = reply(lm, before[0], line, settings)
        return left, reply(lm, before[1], line, settings, edit)


def _last(turns: Turns) -> str:
    """The last message."""
    if not turns:
        raise DialdownError("There is no message to repeat yet: write one.")
    return turns[-1][0]


def reply(
    lm: LM, turns: Turns, message: str, settings: ChatSettings, edit: Intervention | None = None
) -> Reply:
    """What the model says to `message` after `turns`.

    The tokenizer's chat template is used where it has one; else the model goes on with the plain
    text.
    """
    shorter = "start again with /reset, or lower /tokens"
    ids = conversation_ids(lm, turns, message, tokens=settings.tokens, shorter=shorter)
    return generate(lm, ids, settings, edit, turn=len(turns))


def _columns(left: Reply, right: Reply, settings: ChatSettings) -> Table:
    sides = {"base": left, f"edited, strength {settings.strength:g}": right}
    table = Table(*sides, expand=True)
    for column in table.columns:
        column.ratio = 1
    table.add_row(*(Text(printable(reply.text)) for reply in sides.values()))
    if cut := [side.partition(",")[0] for side, reply in sides.items() if not reply.ended]:
        table.caption = (
            f"{' and '.join(cut)} cut at {settings.tokens} tokens: /tokens {2 * settings.tokens} "
            "lets replies go on"
        )
    return table


def _obey(settings: ChatSettings, command: str, value: str) -> tuple[ChatSettings, str]:
    """The settings after a command, and what to say about it."""
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
            f"{command} takes a {kind} and got {value!r}: write {command} 1, or {command} alone to "
            "see what is set."
        ) from error
    return replace(settings, **changed), f"{name} {changed[name]}"
