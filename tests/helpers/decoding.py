"""Prompts of all lengths, decoded here and by transformers."""

from __future__ import annotations

from typing import Any

import torch

from dialdown.models import LM, Decoder

# Lengths 1 to 23 tokens (a token is about a character), longer than the tiny sliding windows, not
# in order of length.
PROMPTS = ("b c", "a", "Hello there, old friend", "the cat sat on the mat", "zebra", "Why?", "q")
NEW = 6


def generate(
    lm: LM, prompt: str, *, max_new_tokens: int = NEW, max_prompt_tokens: int = 32
) -> list[int]:
    """What transformers generates greedily for one prompt, cut before the end-of-text token."""
    ids = torch.tensor([lm.tokenizer(prompt)["input_ids"][:max_prompt_tokens]])
    out = lm.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=lm.tokenizer.pad_token_id,
    )
    new = out[0, ids.shape[1] :].tolist()
    ends = [place for place, token in enumerate(new) if token in lm.eos]
    return new[: ends[0]] if ends else new


def decode(lm: LM, prompts: Any = PROMPTS, **options: Any) -> list[list[int]]:
    return Decoder(lm, prompts, max_new_tokens=NEW, **options).run()


def middle_token(out: list[list[int]]) -> int:
    """A token that ends some rows early, at different places, and others never."""
    ends = {
        token: {(token in row, row.index(token) if token in row else NEW) for row in out}
        for row in out
        for token in row
    }
    return max(
        sorted(ends), key=lambda token: len(ends[token]) if (False, NEW) in ends[token] else 0
    )
