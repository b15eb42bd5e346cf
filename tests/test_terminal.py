"""What leaves for a terminal is shown there, and does nothing."""

from __future__ import annotations

import io
import sys

import pytest
from rich.table import Table

from dialdown.cli import main as cli
from dialdown.terminal import Terminal, printable, take_any_text

ACTING = "a\x1b[31mb\x1b]0;title\x07c\rd\x9b2J\u202eend\x00\ud83d"


@pytest.mark.parametrize("colours", [False, True])
def test_no_text_acts_on_the_terminal_whatever_shows_it(colours: bool) -> None:
    output = io.StringIO()
    out = Terminal(
        file=output, width=60, force_terminal=colours, color_system="truecolor" if colours else None
    )
    table = Table("column" + ACTING)
    table.add_row(ACTING)
    for shown in (ACTING, table):
        out.print(shown, style="red", markup=False)
    out.print("a", ACTING, soft_wrap=True)
    with out.status(ACTING, spinner="line"):
        pass
    said = output.getvalue()
    if not colours:
        assert "\x1b" not in said
    assert "[31mb" in said
    for acting in ("\x1b[31mb", "\x1b]0", "\x07", "\x9b", "\u202e", "\x00", "\ud83d"):
        assert acting not in said


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_of_another_encoding_shows_what_it_can(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, typed = io.BytesIO(), io.BytesIO(b"caf\xe9\xff\x81\n")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(typed, encoding="utf-8"))
    take_any_text()
    table = Table("snow", "☃ 世界 é")
    table.add_row("🙂", "\ud83d")
    cli.out.print(table)
    sys.stdout.flush()
    assert "snow" in written.getvalue().decode(encoding)
    assert input().startswith("caf")


def test_printable_keeps_what_is_shown() -> None:
    assert printable("a\tb\nc é 🙂 世界") == "a\tb\nc é 🙂 世界"
