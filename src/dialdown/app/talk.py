"""What was said in Play by each model, and how it is shown side by side."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from ..errors import DialdownError
from .words import marked, safe

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.lm import LM
    from ..models.replies import Turns

Side = Literal["base", "tuned", "edited"]
TITLES: dict[Side, str] = {"base": "base", "tuned": "tuned (DPO)", "edited": "edited"}


@dataclass(frozen=True)
class Reply:
    """A reply so far, what the judge gives it (None before it has, or without a judge), and whether
    nothing more will come.
    """

    text: str = ""
    score: float | None = None
    done: bool = False


@dataclass(frozen=True)
class Talk:
    """One prompt, or a conversation in which each side goes on from its own replies.

    Attributes:
        chat: a conversation by the model's chat template, not a plain text that is gone on with.
        message: the prompt, or what the user said last.
        turns: what was said before, by side.
        replies: to `message`, by side.
    """

    chat: bool = False
    message: str = ""
    turns: dict[Side, Turns] = field(default_factory=dict)
    replies: dict[Side, Reply] = field(default_factory=dict)

    def with_message(self, message: str, *, chat: bool) -> Talk:
        """The same after the user said something."""
        if not (chat and self.chat):
            return Talk(chat, message)
        turns = {
            side: [*self.turns.get(side, []), (self.message, reply.text)]
            for side, reply in self.replies.items()
        }
        return Talk(chat, message, turns)

    def with_reply(self, side: Side, reply: Reply) -> Talk:
        """The same with a reply of one side."""
        return replace(self, replies={**self.replies, side: reply})


def ids_of(lm: LM, talk: Talk, side: Side, tokens: int) -> tuple[Tensor, str]:
    """What a model goes on from, by the turns of one side and with room for a reply of `tokens`:
    (1, n) token ids, and a sentence where the start of a prompt was cut off, or nothing.
    """
    import torch

    from ..models.replies import conversation_ids

    if not talk.message.strip():
        raise DialdownError("There is nothing to go on from: write a prompt.")
    room = lm.context - tokens
    if room < 1:
        raise DialdownError(
            f"{tokens} new tokens leave no room for a prompt in the context of {lm.name} "
            f"({lm.context}): ask for fewer."
        )
    if talk.chat:
        return conversation_ids(lm, talk.turns.get(side, []), talk.message, tokens=tokens), ""
    row = lm.encode([talk.message])[0]
    if not row:
        raise DialdownError(
            f"The tokenizer of {lm.name} makes no tokens of the prompt: write another one."
        )
    if len(row) <= room:
        return torch.tensor([row], device=lm.device), ""
    kept = [*lm.bos, *row[len(row) - room + len(lm.bos) :]]
    note = (
        f"The prompt has {len(row):,} tokens; the models go on from the last {len(kept):,}, which "
        f"fit in the context of {lm.name}."
    )
    return torch.tensor([kept], device=lm.device), note


def columns(talk: Talk, sides: dict[Side, str], *, concept: str = "toxicity") -> str:
    """All sides as HTML, each with a small line below its title, the words that differ from the
    base's marked; the scores are of `concept`.
    """
    cells = "".join(_column(talk, side, below, concept) for side, below in sides.items())
    return f'<div class="dd-columns">{cells}</div>'


def _column(talk: Talk, side: Side, below: str, concept: str) -> str:
    reply = talk.replies.get(side)
    before = "".join(_turn(message, safe(answer)) for message, answer in talk.turns.get(side, []))
    base = talk.replies.get("base")
    compared = side != "base" and base is not None and reply is not None and reply.done
    text = "" if reply is None else reply.text
    shown = marked(text, base.text) if compared and base else safe(text)
    if reply is not None and reply.done and not text.strip():
        shown = '<span class="dd-faint">(nothing: the model ended at once)</span>'
    if reply is None and talk.message:
        shown = '<span class="dd-faint">(waits for its turn)</span>'
    if reply is not None and not reply.done:
        shown += '<span class="dd-caret" aria-hidden="true"></span>'
    last = _turn(talk.message, shown) if talk.message else ""
    if talk.message and not talk.chat:
        prompt = f'<span class="dd-prompt">{safe(talk.message[-400:])}</span>'
        last = f'<p class="dd-text" dir="auto">{prompt}{shown}</p>'
    return (
        f'<section class="dd-column" data-side="{side}"><header><b>{TITLES[side]}</b>'
        f"<small>{safe(below)}</small></header>{_score(reply, concept)}{before}{last}</section>"
    )


def _turn(message: str, reply: str) -> str:
    return (
        f'<p class="dd-said" dir="auto">{safe(message[-400:])}</p>'
        f'<p class="dd-text dd-reply" dir="auto">{reply}</p>'
    )


def _score(reply: Reply | None, concept: str) -> str:
    if reply is None or reply.score is None:
        return '<div class="dd-score"></div>'
    return (
        f'<div class="dd-score"><meter min="0" max="1" low="0.33" high="0.66" optimum="0" '
        f'value="{reply.score:.3f}" aria-label="{safe(concept)}"></meter>'
        f"<span>{safe(concept)} of the reply: {reply.score:.2f}</span></div>"
    )
