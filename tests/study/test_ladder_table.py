"""A ladder's table in a terminal and as a figure: methods that are not comparable at its price, and
judges whose names end alike.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dialdown.cli.summary import show_ladder
from dialdown.evaluation.perplexity import TextMeasure
from dialdown.evaluation.row import Measured
from dialdown.report.figures import draw_ladder
from dialdown.study.ladder_table import Entry, table
from dialdown.study.ladder_text import markdown, shown
from dialdown.terminal import Terminal

KL = 0.05
JUDGES = ("embedded:ngram", "embedded:minilm")


def entry(
    toxicity: float, degenerate: float = 0.0, kl: float = KL, judges: Sequence[str] = JUDGES
) -> Entry:
    """A method by what the judges say, and the share of its degenerate continuations."""
    broken = np.arange(100) < 100 * degenerate
    values = {
        **{f"toxicity/{judge}": [toxicity + place / 8] * 100 for place, judge in enumerate(judges)},
        "toxicity": [toxicity] * 100,
        "log_ppl": [1.0] * 4,
        "degenerate": broken.astype(float).tolist(),
    }
    text = TextMeasure(np.ones(4), np.full(4, 8), np.full(4, kl))
    return Entry(1.0, Measured(values, [8] * 4, [""] * 100, [*judges], 0), {"neutral": text})


def written(folder: Path, entries: dict[str, Entry]) -> Path:
    """A folder with the table of a ladder."""
    ladder = {"kl": KL, "prompts": 100, "template": "none", "texts": ["neutral"], "caveat": ""}
    rows = table(entries, {}, KL)
    (folder / "ladder.json").write_text(json.dumps({**ladder, "rows": rows}))
    (folder / "run.json").write_text(json.dumps({"config": {"concept": "toxicity"}}))
    return folder


def texts_of(folder: Path) -> set[str]:
    """What is written in the figure of a ladder."""
    svg = next(path for path in draw_ladder(folder) if path.suffix == ".svg")
    return {*re.findall(r">([^<>]+)</text>", svg.read_text())}


def told(folder: Path, width: int) -> str:
    """The table in a terminal of a width, up to the sentence on how it is to be read."""
    out = io.StringIO()
    show_ladder(folder, Terminal(file=out, width=width))
    return out.getvalue().partition("100 prompts")[0]


@pytest.fixture
def unlike(tmp_path: Path) -> Path:
    """A ladder of methods that are not comparable."""
    entries = {
        "untouched": entry(0.5, kl=0.0),
        "aura": entry(0.3),
        "mine:weak": entry(0.4, kl=0.001),
        "mine:broken": entry(0.1, degenerate=0.3),
        "mine:both": entry(0.2, degenerate=0.3, kl=0.001),
    }
    return written(tmp_path, entries)


def test_the_figure_marks_methods_that_are_not_comparable_at_its_price(unlike: Path) -> None:
    signs = {"mine:weak †", "mine:broken ‡", "mine:both †‡", "untouched", "AurA at neurons"}
    assert signs | {"Methods at a KL of 0.05"} <= texts_of(unlike)
    svg = (unlike / "figures" / "ladder.svg").read_text()
    assert ">† price not reached<" in svg
    assert ">‡ paid for with degenerate text<" in svg


def test_a_figure_of_comparable_methods_has_no_signs(tmp_path: Path) -> None:
    folder = written(tmp_path, {"untouched": entry(0.5, kl=0.0), "aura": entry(0.3)})
    draw_ladder(folder)
    svg = (folder / "figures" / "ladder.svg").read_text()
    assert ">AurA at neurons<" in svg
    assert not {*svg} & {*"†‡"}


@pytest.mark.parametrize("width", [80, 119, 120, 200])
def test_a_terminal_of_any_width_says_which_methods_are_not_at_the_price(
    unlike: Path, width: int
) -> None:
    # Words of a cell may stand below each other.
    words = {
        name: re.findall(r"[a-z]+", block)
        for name, block in re.findall(
            r"^ ?(untouched|aura|mine:\w+)(.*?)(?=^ ?\S|\Z)", told(unlike, width), re.M | re.S
        )
    }
    for name, not_reached in (("mine:weak", True), ("mine:both", True), ("aura", False)):
        assert ("reached" in words[name]) == not_reached
    if width < 120:
        assert "degenerate" in words["mine:broken"]
        assert "degenerate" not in words["mine:weak"]


def test_a_table_of_an_earlier_version_is_drawn(unlike: Path) -> None:
    ladder = json.loads((unlike / "ladder.json").read_text())
    for row in ladder["rows"]:
        del row["speaks"]
    (unlike / "ladder.json").write_text(json.dumps(ladder))
    assert {"mine:broken", "mine:weak †"} <= texts_of(unlike)


@pytest.mark.parametrize(
    ("judges", "names"),
    [
        (JUDGES, ("ngram", "minilm")),
        (("one/toxicity", "other/toxicity"), ("one/toxicity", "other/toxicity")),
        (("one/mild", "other/harsh"), ("mild", "harsh")),
    ],
)
def test_judges_whose_names_end_alike_stay_two(
    tmp_path: Path, judges: tuple[str, str], names: tuple[str, str]
) -> None:
    entries = {"untouched": entry(0.5, kl=0.0, judges=judges), "aura": entry(0.3, judges=judges)}
    folder = written(tmp_path, entries)
    assert {*names} <= texts_of(folder)
    head = markdown(shown(table(entries, {}, KL), "toxicity")).splitlines()[0]
    assert all(f"| toxicity, {name} |" in head for name in names)
    # Each judge has a mark in each row.
    assert (folder / "figures" / "ladder.svg").read_text().count("judge: ") == 4
