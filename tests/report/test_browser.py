"""The page in a browser: nothing is wider than the screen, what can be clicked works, and an
accessibility check finds nothing. Skipped where Playwright or Chromium is missing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from dialdown.report.page import write_report
from helpers.fabricated_run import write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
OPEN_ALL = "document.querySelectorAll('details').forEach((part) => { part.open = true })"
WIDTH = "document.documentElement.scrollWidth"
TEXT_END = """Math.max(...[...document.querySelectorAll("svg text")].map(
    (text) => text.getBoundingClientRect().right))"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(write_run(tmp_path_factory.mktemp("browser") / "run")).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def opened(browser: Any, url: str, **options: Any) -> Any:
    page = browser.new_page(**options)
    page.said = []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.said.append(request.url))
    page.goto(url)
    # The page itself is all that was asked for, and no part of it was refused.
    assert page.said == [url]
    return page


@pytest.mark.parametrize("width", [390, 1024, 1440])
def test_nothing_is_wider_than_the_screen(browser: Any, url: str, width: int) -> None:
    page = opened(browser, url, viewport={"width": width, "height": 900})
    assert page.evaluate(WIDTH) == width
    page.evaluate(OPEN_ALL)
    assert page.evaluate(WIDTH) == width
    assert page.evaluate(TEXT_END) <= width


def test_the_first_screen_holds_the_sentences_and_the_trade_off(browser: Any, url: str) -> None:
    page = opened(browser, url, viewport={"width": 1440, "height": 900})
    for svg in page.locator("#tradeoff svg").all():
        box = svg.bounding_box()
        assert box["y"] > 0
        assert box["y"] + box["height"] < 900
    assert page.locator("#claims h2").bounding_box()["y"] < 900


def test_a_point_tells_its_numbers_and_leads_to_its_samples(browser: Any, url: str) -> None:
    page = opened(browser, url, viewport={"width": 1440, "height": 900})
    point = page.locator("#tradeoff-strict a[aria-label*='probe edit, scale']")
    point.hover()
    told = page.locator("#tip").inner_text()
    assert "toxicity: 0.17 [" in told
    assert "change of log-perplexity: 0.25 [" in told
    assert "“edit_probe_scale” strict" in told
    assert not page.locator(".uncensored").evaluate("part => part.open")
    point.click()
    target = point.get_attribute("href")
    assert page.locator(target).evaluate("part => part.open && part.checkVisibility()")
    assert "probe edit, scale" in page.locator(f"{target} summary").inner_text()


def test_a_column_is_sorted_by_its_head(browser: Any, url: str) -> None:
    page = opened(browser, url)
    table = page.locator("#table-2")
    head = table.get_by_role("button", name="toxicity")
    cells = "rows => rows.map((row) => parseFloat(row.cells[2].textContent))"
    for order in (sorted, lambda values: sorted(values, reverse=True)):
        head.click()
        values = table.locator("tbody tr").evaluate_all(cells)
        assert values == order(values)
        assert len(values) == 32


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_accessibility_check_finds_nothing(browser: Any, url: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = opened(browser, url, color_scheme=scheme, bypass_csp=True)
    page.evaluate(OPEN_ALL)
    results = axe.Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
