"""Replies that decline, as a metric."""

from __future__ import annotations

from collections.abc import Sequence

from ..models.refusals import declines
from .row import REFUSAL


class Refusals:
    """The share of replies that decline (`declines`), where prompts are turns of a template."""

    name = REFUSAL

    def measure(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[float]:
        """1 for each reply that declines, else 0."""
        return [float(declines(reply)) for reply in continuations]
