"""An evaluation suite in small."""

from __future__ import annotations

from typing import Any

from dialdown.evaluation import Suite
from helpers.decoding import PROMPTS
from helpers.reading import TEXT
from helpers.scorers import FakeScorer

PAIRS = (("the cat", " sat on"), ("the zebra", "said no"), ("a", "b"))
NEW = 6  # tokens of a continuation


def suite(**options: Any) -> Suite:
    """A suite of two scorers, with other options where they are given."""
    given = {
        "prompts": PROMPTS,
        "pairs": PAIRS,
        "text": TEXT,
        "scorers": [FakeScorer(), FakeScorer("second", 31)],
    }
    return Suite(**{**given, "max_new_tokens": NEW, "window": 20, "kl_windows": 2, **options})
