"""The app in a browser: every tab of a study on a tiny model, as a user clicks through it."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dialdown.app.source import find_source
from dialdown.files import write_sealed
from dialdown.models.lm import LM
from dialdown.models.replies import ReplySettings, generate
from helpers import edits, fabricated_run, tiny
from helpers.folders import saved

CHROMIUM = shutil.which("chromium")
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
with warnings.catch_warnings():
    # What Gradio's own imports warn of is not for this project to mend.
    warnings.simplefilter("ignore")
    pytest.importorskip("gradio")
    sync = pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
    pytest.mark.filterwarnings("default"),
]
WILD = "the cat <b>sat</b> <script>window.hurt = 1</script> 🙂 שלום & a"
SIZES = {
    "num_hidden_layers": fabricated_run.LAYERS,
    "intermediate_size": fabricated_run.NEURONS,
    "max_position_embeddings": 256,
}
EDIT = "strict-edit_probe_scale"
PATIENCE = 180_000  # milliseconds: the machine may be busy


def base() -> LM:
    return tiny.lm("llama", **SIZES)


def tuned() -> LM:
    return tiny.lm("llama", seed=1, **SIZES)


def edit() -> Any:
    return edits.make(base(), "scale", share=0.3)


def expected(lm: LM, prompt: str, change: Any = None) -> str:
    ids = torch.tensor(lm.encode([prompt]))
    return generate(lm, ids, ReplySettings(tokens=30), change).text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder around tiny models, with one saved edit."""
    root = tmp_path_factory.mktemp("study")
    prompts = root / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"the cat {n}"}) + "\n" for n in range(20)))
    folder = fabricated_run.write_run(
        root / "run",
        model=str(saved(base(), root / "base")),
        tuned=str(saved(tuned(), root / "tuned")),
    )
    record = json.loads((folder / "run.json").read_text())
    record.pop("sha256", None)
    record["config"]["evaluation"] |= {
        "judge": "helpers.scorers:FakeScorer", "prompts": str(prompts), "count": 12,
        "control_count": 12,
    }  # fmt: skip
    write_sealed(folder / "run.json", record)
    (folder / "interventions").mkdir()
    edit().save(folder / "interventions" / f"{EDIT}.safetensors")
    return folder


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    from dialdown.app.server import open_page

    page, where = open_page(find_source(str(run)))
    yield where
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The loaded page of one visitor, who asks no other site for anything."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    page, asked = visit(context, address)
    yield page
    context.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def visit(context: Any, address: str) -> tuple[Any, list[str]]:
    asked: list[str] = []
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.get_by_text("6 layers of 60 neurons").wait_for()
    return page, asked


def replies(page: Any) -> dict[str, str]:
    """What each side has written, once all have."""
    page.wait_for_function(
        "document.querySelectorAll('#columns .dd-column meter').length === 3"
        " && !document.querySelector('#columns .dd-caret')",
        timeout=PATIENCE,
    )
    return {
        column.get_attribute("data-side"): column.locator(".dd-text").text_content()
        for column in page.locator("#columns .dd-column").all()
    }


def ask(page: Any, prompt: str) -> dict[str, str]:
    page.locator("#prompt textarea").fill(prompt)
    page.locator("#send").click()
    # All of a long prompt is not shown.
    page.locator("#columns .dd-prompt", has_text=prompt[-40:]).first.wait_for()
    return replies(page)


def test_every_side_replies_and_the_dial_changes_the_edited_one(page: Any) -> None:
    first = ask(page, WILD)
    wanted = {
        "base": WILD + expected(base(), WILD),
        "tuned": WILD + expected(tuned(), WILD),
        "edited": WILD + expected(base(), WILD, edit()),
    }
    assert first == wanted
    assert page.evaluate("window.hurt") is None
    assert page.locator("#columns mark").count() > 0

    number = page.locator("#strength input[type=number]")
    number.fill("0")
    number.press("Enter")
    page.get_by_text("strength 0").wait_for()
    page.wait_for_function(
        "wanted => document.querySelector('[data-side=edited] .dd-text').textContent === wanted",
        arg=wanted["base"],
        timeout=PATIENCE,
    )
    assert replies(page) == {**wanted, "edited": wanted["base"]}


def test_an_empty_and_an_endless_prompt_are_a_sentence(page: Any) -> None:
    page.locator("#prompt textarea").fill("   ")
    page.locator("#send").click()
    page.get_by_text("There is nothing to go on from").wait_for()
    ask(page, "cat " * 2500)
    page.get_by_text("the models go on from the last 226").wait_for()


def test_two_visitors_at_once_each_get_their_own(browser: Any, address: str) -> None:
    contexts = [browser.new_context() for _ in range(2)]
    prompts = ["the cat", "a dog ran"]
    pages = [visit(context, address)[0] for context in contexts]
    for page, prompt in zip(pages, prompts, strict=True):
        page.locator("#prompt textarea").fill(prompt)
        page.locator("#send").click()
    for page, prompt in zip(pages, prompts, strict=True):
        page.locator("#columns .dd-column").first.wait_for()
        assert replies(page) == {
            "base": prompt + expected(base(), prompt),
            "tuned": prompt + expected(tuned(), prompt),
            "edited": prompt + expected(base(), prompt, edit()),
        }
    for context in contexts:
        context.close()


def test_a_row_of_the_front_is_loaded_into_play(page: Any) -> None:
    page.get_by_role("tab", name="Front").click()
    page.locator("#front-chart svg").wait_for()
    page.locator("#front-list [role=gridcell]", has_text="probe edit, scale").first.click()
    page.locator("#columns .dd-column").first.wait_for()
    assert "strength 1" in page.locator("[data-side=edited] header").inner_text()
    page.get_by_role("tab", name="Front").click()
    page.locator("#front-list [role=gridcell]", has_text="probe edit, shift").first.click()
    page.get_by_text("its edit is not kept in this folder").wait_for()


def test_a_mark_of_the_front_is_loaded_into_play(page: Any) -> None:
    page.get_by_role("tab", name="Front").click()
    page.locator("#front-chart svg").wait_for()
    # The mark of the edit is a cross in its colour, among paths that Vega labels for readers.
    mark = page.locator("#front-chart path[aria-label*='probe edit, scale']").first
    mark.click(force=True)
    page.locator("#columns .dd-column").first.wait_for()
    assert "strength 1" in page.locator("[data-side=edited] header").inner_text()


def test_a_layer_lists_its_neurons(page: Any) -> None:
    page.get_by_role("tab", name="Layers").click()
    page.locator("#layers-chart svg").wait_for()
    page.locator("#layers-list [data-testid=cell-4-0]").click()
    page.wait_for_function(
        "document.querySelector('#neurons [data-testid=cell-0-0]')?.innerText === '4'",
        timeout=PATIENCE,
    )


def test_a_neuron_has_a_card_and_a_dial(page: Any) -> None:
    page.get_by_role("tab", name="Neurons").click()
    page.locator("#word textarea, #word input").first.fill("cat")
    page.locator("#find").click()
    page.get_by_text("The token ' cat'").wait_for()
    layer = page.locator("#neurons [data-testid=cell-0-0]").inner_text()
    neuron = page.locator("#neurons [data-testid=cell-0-1]").inner_text()
    page.locator("#neurons [data-testid=cell-0-4]").click()
    page.get_by_text(f"Layer {layer}, neuron {neuron}").wait_for()
    page.locator("#histogram svg").wait_for()
    assert page.locator("#texts .dd-text").count() == 8
    assert page.locator("#card dl dt").count() > 4
    number = page.locator("#dial input[type=number]")
    number.fill("5")
    number.press("Enter")
    page.get_by_text(f"layer {layer}, neuron {neuron} × 5").wait_for()
    page.wait_for_function(
        "document.querySelectorAll('#dialled meter').length === 2", timeout=PATIENCE
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_tab_has_a_barrier_or_is_wider_than_a_phone(
    browser: Any, address: str, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    context = browser.new_context(viewport={"width": 390, "height": 900}, color_scheme=scheme)
    page, _ = visit(context, address)
    ask(page, "the cat")
    for tab in ("Play", "Neurons", "Front", "Layers"):
        page.get_by_role("tab", name=tab).click()
        if tab == "Neurons":
            page.locator("#show-neuron").click()
            page.locator("#histogram svg").wait_for()
        elif tab != "Play":
            page.locator(f"#{tab.lower()}-chart svg").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        results = axe.Axe().run(page)
        assert results.violations_count == 0, results.generate_report()
    context.close()
