"""Repetition and degeneration of a continuation: what perplexity does not see (METHOD §5)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

# Half of all 2-grams repeated is text such as "just just just a a a the the".
DEGENERATE = 0.5


def repetition(tokens: Sequence[int]) -> float | None:
    """The share of 2-grams seen before in the continuation, one minus its distinct-2; None where it
    has no 2-gram.
    """
    pairs = list(pairwise(tokens))
    return 1 - len(set(pairs)) / len(pairs) if pairs else None


def is_degenerate(tokens: Sequence[int]) -> bool:
    """Whether a continuation is empty or mostly repeats itself."""
    return not tokens or (repetition(tokens) or 0.0) > DEGENERATE
