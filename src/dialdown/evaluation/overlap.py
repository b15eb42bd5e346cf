"""What a continuation shares with the true one, and with itself (METHOD §5, §6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

# Half of all 2-grams repeated is text such as "just just just a a a the the".
DEGENERATE = 0.5


def token_f1(given: Sequence[int], gold: Sequence[int]) -> float:
    """Harmonic mean of precision and recall of the token multisets; 0 where they share nothing."""
    shared = sum((Counter(given) & Counter(gold)).values())
    return 2 * shared / (len(given) + len(gold)) if shared else 0.0


def repetition(tokens: Sequence[int]) -> float | None:
    """The share of 2-grams seen before, which is 1 - distinct-2; None where there is no 2-gram."""
    pairs = list(pairwise(tokens))
    return 1 - len(set(pairs)) / len(pairs) if pairs else None


def is_degenerate(tokens: Sequence[int]) -> bool:
    """Whether a continuation is empty or mostly repeats itself."""
    return not tokens or (repetition(tokens) or 0.0) > DEGENERATE
