"""F1: how much of the true continuation a model writes (METHOD §6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def token_f1(given: Sequence[int], gold: Sequence[int]) -> float:
    """Harmonic mean of precision and recall of the token multisets; 0 where they share nothing."""
    shared = sum((Counter(given) & Counter(gold)).values())
    return 2 * shared / (len(given) + len(gold)) if shared else 0.0
