"""Text to and from the terminal, whatever characters it holds."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

# What acts on a terminal instead of being shown there: control characters, and what turns the
# direction of writing.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    """A text without what would act on a terminal; half characters, which no terminal can show, are
    replaced.
    """
    return _HALF_CHARACTER.sub("\ufffd", _ACTING.sub("", text))


class Terminal(Console):
    """A console that shows every text as it is: what comes from a file or a model never acts on the
    terminal.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Everything that is printed passes here on its way, table cells and progress included."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def take_any_text() -> None:
    """Let the standard streams take what their encoding has no bytes for, or cannot decode."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
