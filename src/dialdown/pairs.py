"""Preference pairs: one prompt, a continuation to prefer and one to avoid (METHOD §8)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """One prompt with two continuations of it.

    Attributes:
        prompt: the text both continuations follow.
        chosen: the preferred continuation, with the whitespace it starts with; no end-of-text token.
        rejected: the dispreferred continuation, likewise.
    """

    prompt: str
    chosen: str
    rejected: str
