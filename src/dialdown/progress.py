"""How long work says how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is going on, how many units are done, and how many there are."""


def silent(what: str, done: int, total: int) -> None:
    """Say nothing."""
