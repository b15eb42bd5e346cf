"""What a model says to a prompt or in a conversation, read token by token as it comes.

ids = conversation_ids(lm, turns, "hello", tokens=30)
generate(lm, ids, ReplySettings(tokens=30), hear=lambda text: print(text) or True)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from ..data.reading import whole_text
from ..errors import DialdownError
from .hooks import Change, Positions
from .lm import LM
from .templates import has_chat_template, messages_of, templated_ids
from .tokens import encode, text_after

SAMPLING = ("temperature", "top_p", "top_k")

Turns = list[tuple[str, str]]
"""What was said so far: (message, reply) pairs."""
Hear = Callable[[str], bool]
"""Is told all of a reply so far after each token; False ends it there."""


class Reply(NamedTuple):
    """What a model said, and whether it was done."""

    text: str
    ended: bool


@dataclass(frozen=True)
class ReplySettings:
    """Length and sampling of a reply.

    Attributes:
        tokens: the longest reply, in tokens.
        temperature: 0 is greedy.
        seed: of sampled replies.
    """

    tokens: int = 128
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
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


def conversation_ids(
    lm: LM, turns: Turns, message: str, *, tokens: int, shorter: str = "start again, or write less"
) -> Tensor:
    """(1, n) token ids of everything said so far and `message`, by the tokenizer's chat template
    where it has one, else a line of plain text for each turn.

    Raises:
        DialdownError: there are none, or they and a reply of `tokens` exceed the context of the
            model; `shorter` is what to do about it.
    """
    message = whole_text(message, "The message")
    if has_chat_template(lm.tokenizer):
        row = templated_ids(lm.tokenizer, messages_of(turns, message))
    else:
        text = "\n".join([*(question + answered for question, answered in turns), message])
        row = encode(lm.tokenizer, [text])[0]
    if not row:
        raise DialdownError(
            f"The tokenizer of {lm.name} makes no tokens of the message: write another one."
        )
    if len(row) + tokens > lm.context:
        raise DialdownError(
            f"The conversation has {len(row):,} tokens, which with {tokens:,} new ones exceed the "
            f"context of {lm.name} ({lm.context:,}): {shorter}."
        )
    return torch.tensor([row], device=lm.device)


def generate(
    lm: LM,
    ids: Tensor,
    settings: ReplySettings,
    change: Change | None = None,
    *,
    positions: Positions = "all",
    turn: int = 0,
    hear: Hear | None = None,
) -> Reply:
    """What the model goes on to write after `ids`, without the token that ended it.

    Args:
        lm: the model.
        ids: (1, n) token ids that leave room for the reply in the model's context.
        settings: length and sampling.
        change: what acts meanwhile, such as an intervention; None for the model as it is.
        positions: where it acts in each forward pass.
        turn: added to the seed, so that each turn of a conversation has draws of its own.
        hear: see `Hear`.
    """
    # What a checkpoint's own configuration says about sampling would come with a warning where
    # nothing is sampled.
    sampling: dict[str, Any] = (
        {"temperature": settings.temperature} if settings.temperature else dict.fromkeys(SAMPLING)
    )
    listener = StoppingCriteriaList([_Listener(lm, ids.shape[1], hear)] if hear else [])
    devices = [lm.device] if lm.device.type == "cuda" else []
    with (
        change.measured(lm, positions=positions) if change else nullcontext(),
        torch.random.fork_rng(devices),
        torch.inference_mode(),
    ):
        torch.manual_seed(settings.seed + turn)
        out: Tensor = lm.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=settings.tokens,
            pad_token_id=lm.tokenizer.pad_token_id,
            eos_token_id=sorted(lm.eos) or None,
            do_sample=settings.temperature > 0,
            stopping_criteria=listener,
            **sampling,
        )
    return Reply(_text(lm, out[0], ids.shape[1]), int(out[0, -1]) in lm.eos)


def _text(lm: LM, ids: Tensor, start: int) -> str:
    """The text of the tokens from `start` on."""
    if len(ids) > start and int(ids[-1]) in lm.eos:
        ids = ids[:-1]
    return text_after(lm.tokenizer, ids[:start].tolist(), ids[start:].tolist())


class _Listener(StoppingCriteria):
    """Tells a reply so far, and stops where nobody wants more of it."""

    def __init__(self, lm: LM, start: int, hear: Hear) -> None:
        self.lm, self.start, self.hear = lm, start, hear

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        more = self.hear(_text(self.lm, input_ids[0], self.start))
        return torch.full((len(input_ids),), not more, device=input_ids.device)
