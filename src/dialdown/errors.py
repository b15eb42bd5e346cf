"""The one exception a user's mistake raises, and the helper that names the nearest known word."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class DialdownError(Exception):
    """What was given, why it cannot work, what to pass instead: one sentence, shown without a traceback."""


def nearest(given: str, known: Iterable[str]) -> str:
    """The end of an error sentence about an unknown name, its mark included: the closest known one, or all of them."""
    names = sorted(known)
    close = get_close_matches(given, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(map(repr, names))}."
