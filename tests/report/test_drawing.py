"""The three files and the page's picture that come of one chart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from dialdown.report.chart_style import Chart
from dialdown.report.charts import tradeoff
from dialdown.report.drawing import inline, save
from dialdown.report.neuron_charts import figure_8_layer_group
from helpers.charts import POINTS, compared_table, rows_of


def test_saved_figures_are_small_and_the_same_each_time(tmp_path: Path) -> None:
    table = compared_table((6, 100))
    once, again = (
        save(figure_8_layer_group(table), tmp_path / name / "figure 8.1") for name in ("a", "b")
    )
    assert [path.name for path in once] == ["figure 8.1.svg", "figure 8.1.png", "figure 8.1.pdf"]
    # The writer of PDF files orders their fonts by chance.
    for first, second in list(zip(once, again, strict=True))[:2]:
        assert first.read_bytes() == second.read_bytes()
    starts = (b"<svg", b"\x89PNG", b"%PDF")
    for path, start in zip(once, starts, strict=True):
        assert path.read_bytes().startswith(start)
        assert path.stat().st_size < 300_000


def test_a_figure_does_not_depend_on_what_was_drawn_before_it(tmp_path: Path) -> None:
    first, second = (
        save(tradeoff(POINTS, "strict", price=price), tmp_path / price)[0].read_text()
        for price in ("log_ppl", "kl")
    )
    ids = re.findall(r'id="(.*?)"', first)
    assert ids
    assert ids == re.findall(r'id="(.*?)"', second)
    assert all(f"url(#{name})" in first for name in ids)


def inlined(chart: Chart, **options: Any) -> tuple[str, ElementTree.Element]:
    text = inline(chart, "name", "What <it> shows & how", **options)
    return text, ElementTree.fromstring(text)


def test_a_chart_for_the_page_is_offline_and_takes_its_colours_from_there() -> None:
    chart = figure_8_layer_group(compared_table())
    text, root = inlined(chart)
    assert text == inlined(chart)[0]
    assert (root.get("role"), root.get("aria-label")) == ("img", "What <it> shows & how")
    assert "var(--fig-vermillion)" in text
    assert not re.search(r"https?:|//|#[0-9a-f]{6}|style=", text)


def test_a_mark_on_the_page_tells_what_its_tooltip_would() -> None:
    table = compared_table()
    bars = rows_of(figure_8_layer_group(table), "bar", "reduction")
    _, root = inlined(figure_8_layer_group(table))
    told = [mark.get("data-tip", "") for mark in root.iter() if mark.get("data-tip")]
    assert len(told) == len(bars)
    assert {tip.split("\n")[1] for tip in told} == {f"group: {bar['group']}" for bar in bars}
    # Nothing else is told, such as axes.
    assert not [mark for mark in root.iter() if mark is not root and mark.get("aria-label")]


def test_a_mark_leads_to_what_it_names() -> None:
    _, root = inlined(tradeoff(POINTS, "strict"), links={"dpo": "samples-7"})
    leading = [mark for mark in root.iter("a") if mark.get("href") == "#samples-7"]
    assert len(leading) == sum(point.name == "dpo" for point in POINTS)
    assert all("name: dpo" in (mark.get("aria-label") or "") for mark in leading)
    assert root.get("role") == "group"
