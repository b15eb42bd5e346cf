"""Texts as HTML: always escaped, whitespace kept, the words that differ marked, tokens coloured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from html import escape

_WORD = re.compile(r"\s+|\w+|[^\w\s]")
_CODE = re.compile(r"`([^`]+)`")


def safe(text: str) -> str:
    """A text as HTML that shows it and does nothing else; half characters are replaced."""
    return escape(text.encode(errors="replace").decode())


def marked(text: str, reference: str) -> str:
    """A text as HTML in which the words that the reference does not have there are marked."""
    words, others = _WORD.findall(text), _WORD.findall(reference)
    matcher = SequenceMatcher(None, others, words, autojunk=False)
    parts = []
    for kind, _, _, start, end in matcher.get_opcodes():
        piece = safe("".join(words[start:end]))
        if piece:
            parts.append(piece if kind == "equal" else f"<mark>{piece}</mark>")
    return "".join(parts)


def shown_token(token: str) -> str:
    """A token as HTML: its spaces and line breaks are visible."""
    return safe(token.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")) or "∅"


def chips(tokens: Sequence[tuple[str, float]]) -> str:
    """Tokens of the logit lens as a row of HTML, each with its logit under the pointer."""
    spans = (
        f'<span class="dd-token" title="logit {logit:.2f}">{shown_token(token)}</span>'
        for token, logit in tokens
    )
    return f'<div class="dd-tokens">{"".join(spans)}</div>'


def coloured(tokens: Sequence[str], values: Sequence[float], most: float) -> str:
    """A text as HTML, each token on a ground that says how large its value is: warm above zero,
    cool below, full at `most`.
    """
    spans = []
    for token, value in zip(tokens, values, strict=True):
        share = min(1.0, abs(value) / most) if most > 0 else 0.0
        sign = "up" if value >= 0 else "down"
        spans.append(
            f'<span class="dd-{sign}" style="--share:{share:.2f}" title="{value:.4g}">'
            f"{safe(token)}</span>"
        )
    return f'<div class="dd-text" dir="auto">{"".join(spans)}</div>'


def says(sentence: str) -> str:
    """A sentence to the user as HTML, what is in backticks as code; nothing for no sentence."""
    shown = _CODE.sub(r"<code>\1</code>", safe(sentence))
    return f'<p class="dd-note" role="status">{shown}</p>' if sentence else ""
