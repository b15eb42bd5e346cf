"""How a value shows itself in a notebook: a title, a few facts, rows, and one bar per layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

# Lines and bars are grey and the text has the page's own colour, so that a card can be read in a
# dark notebook as in a light one.
_LINE = "border-top: 1px solid rgba(128, 128, 128, .4)"
_CELL = "padding: .15em .9em .15em 0; text-align: left; vertical-align: top"
_LONGEST = 160  # characters of one fact


def card(
    title: str,
    facts: Mapping[str, object],
    *,
    rows: Sequence[Sequence[object]] = (),
    bars: Iterable[float] = (),
) -> str:
    """HTML without scripts, in which every text is escaped.

    Args:
        title: what the value is.
        facts: a line each; those that are None are left out.
        rows: a table under the facts, its first row the heads.
        bars: numbers from 0 upwards; the tallest bar is the largest of them.
    """
    lines = [("td", (name, fact)) for name, fact in facts.items() if fact is not None]
    below = [("td" if number else "th", row) for number, row in enumerate(rows)]
    shown = _table(lines) + _bars([*bars]) + _table(below)
    return f'<div style="margin: .4em 0"><strong>{_text(title)}</strong>{shown}</div>'


def _table(rows: Sequence[tuple[str, Sequence[object]]]) -> str:
    lines = []
    for tag, row in rows:
        cells = "".join(f'<{tag} style="{_CELL}">{_text(cell)}</{tag}>' for cell in row)
        lines.append(f'<tr style="{_LINE}; background: none">{cells}</tr>')
    return (
        f'<table style="border-collapse: collapse; margin: .3em 0">{"".join(lines)}</table>'
        if lines
        else ""
    )


def _bars(numbers: Sequence[float]) -> str:
    tallest = max(numbers, default=0.0)
    if not tallest > 0:
        return ""
    bars = "".join(
        '<span style="display: inline-block; width: 6px; margin-right: 2px; background: #888; '
        f'height: {32 * number / tallest:.0f}px" title="layer {layer}: {number:.4g}"></span>'
        for layer, number in enumerate(numbers)
    )
    return f'<div style="line-height: 0; padding: 4px 0">{bars}</div>'


def _text(content: object) -> str:
    if isinstance(content, Mapping):
        # Of a record inside a record, what it is of.
        content = content.get("name") or content.get("model") or dict(content)
    whole = f"{content:.4g}" if isinstance(content, float) else str(content)
    return escape(whole if len(whole) <= _LONGEST else f"{whole[: _LONGEST - 1]}…")
