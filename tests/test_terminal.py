"""What leaves for a terminal or a spreadsheet is shown there, and does nothing."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import polars as pl
import pytest
from rich.table import Table

from dialdown.cli import main as cli
from dialdown.cli.chat import ChatSettings, chat, reply
from dialdown.data.csv_tables import read_csv, write_csv
from dialdown.errors import DialdownError, enough_memory
from dialdown.interventions.intervention import untouched
from dialdown.terminal import Terminal, printable, take_any_text
from helpers import tiny

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


def test_chat_shows_names_without_what_acts(llama: tiny.LM) -> None:
    from dataclasses import replace

    output = io.StringIO()
    lines = iter(["/\x1b[31mhelp"])

    def read(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    named, edit = replace(llama, name="base\x1b[2J"), replace(untouched(), name="edit\x1b]0;x\x07")
    chat(named, edit, console=Terminal(file=output, width=200), read=read)
    assert "\x1b" not in output.getvalue()
    assert "\x07" not in output.getvalue()


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


@pytest.mark.parametrize(
    "template",
    [
        "{{ oops",
        "{% for m in messages %}",
        "{{ raise_exception('no system role') }}",
        "{{ messages[7]['content'] }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{{ ''.__class__.__mro__ }}",
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
        "",
    ],
)
def test_a_broken_chat_template_is_one_sentence(template: str) -> None:
    lm = tiny.lm("llama")
    lm.tokenizer.chat_template = template
    with pytest.raises(DialdownError, match=r"chat template|makes no tokens"):
        reply(lm, [], "hello", ChatSettings(tokens=1))


def test_half_a_character_is_no_message(llama: tiny.LM) -> None:
    with pytest.raises(DialdownError, match="The message holds half of a character"):
        reply(llama, [], "hello \ud83d", ChatSettings(tokens=1))


TEXTS = [
    "=1+1",
    "+cmd",
    "-",
    "-5 %",
    "@x",
    "'=1",
    "''+a",
    "'a",
    "-0.5",
    "1e-3",
    "a=b",
    "",
    "\t=1",
    "-0.1 / 2.0",
    "it's",
    None,
]


def test_a_cell_never_becomes_a_formula_and_is_read_back_as_it_was(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"token": TEXTS, "number": [-1.5] * len(TEXTS), "text": [f"{text}x" for text in TEXTS]}
    )
    write_csv({"t": frame}, tmp_path)
    read = read_csv(tmp_path / "t.csv")
    assert read["token"].to_list() == TEXTS
    assert read["text"].to_list() == frame["text"].to_list()
    assert read["number"].to_list() == frame["number"].to_list()
    cells = pl.read_csv(tmp_path / "t.csv", infer_schema=False)
    for column in ("token", "text"):
        for cell in cells[column]:
            assert not cell or cell[0] not in "=@\t\r"
            assert (
                not cell
                or cell[0] not in "+-"
                or all(float(part) is not None for part in cell.split(" / "))
            )


def test_the_innermost_work_says_what_governs_its_memory() -> None:
    for error in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ):
        with (
            pytest.raises(
                DialdownError,
                match=r"not enough memory .*: lower dpo\.batch_size; what is finished is kept",
            ),
            enough_memory("use less"),
            enough_memory("lower dpo.batch_size"),
        ):
            raise error
    with pytest.raises(RuntimeError, match="illegal"), enough_memory("use less"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_printable_keeps_what_is_shown() -> None:
    assert printable("a\tb\nc é 🙂 世界") == "a\tb\nc é 🙂 世界"
