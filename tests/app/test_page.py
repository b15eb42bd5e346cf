"""The page without a browser: it is there before torch is, and opens as its model was asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from dialdown.app.desk import Desk
from dialdown.app.shelf import Shelf
from dialdown.app.source import find_source
from dialdown.exporting.delta import save_delta
from dialdown.files import write_sealed
from dialdown.study.stage import EDIT
from helpers import chat_templates, edits, fabricated_run, tiny
from helpers.folders import saved

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
with warnings.catch_warnings():
    # What Gradio's own imports warn of is not for this project to mend.
    warnings.simplefilter("ignore")
    pytest.importorskip("gradio")
pytestmark = pytest.mark.filterwarnings("default")
SHOW_ALL = """
import sys
from dialdown.app.desk import Desk
from dialdown.app.server import Page
from dialdown.app.shelf import Shelf
from dialdown.app.source import find_source
source = find_source(sys.argv[1])
page = Page(Desk(source), Shelf(source))
front, layers = page.look_again()[2], page.layers.show()[0]
assert front and layers
print([name for name in ("torch", "transformers", "sklearn", "scipy") if name in sys.modules])
"""


def test_rows_tables_and_charts_of_a_study_are_shown_without_torch(tmp_path: Path) -> None:
    run = fabricated_run.write_run(tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-c", SHOW_ALL, str(run)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_the_mark_of_detox_loads_what_it_made(tmp_path: Path) -> None:
    from dialdown.app.server import Page

    lm = tiny.lm("llama")
    model = saved(lm, tmp_path / "model")
    rows = {"none": fabricated_run.MAIN["none"], "detox": fabricated_run.MAIN["edit_probe_scale"]}
    work = fabricated_run.write_run(tmp_path / "calm-work", model=str(model), main=rows)
    edits.make(lm, "scale").save(work / EDIT)
    save_delta(edits.make(lm, "scale"), model, tmp_path / "calm")
    for folder in ("calm", "calm-work"):
        source = find_source(str(tmp_path / folder))
        page = Page(Desk(source), Shelf(source))
        assert page.front.load("strict", "detox") == ("edit", "")
        assert page.front.load("strict", "untouched")[0] is None
        page.close()


def mode_of(folder: Path, base: Path | None = None) -> str:
    """The mode that Play is in once the model is there."""
    from dialdown.app.server import Page

    source = find_source(str(folder), None if base is None else str(base))
    page = Page(Desk(source, judge=False), Shelf(source))
    head, mode, *_ = page.arrive(None)
    page.close()
    assert mode.get("visible"), head
    return str(mode["value"])


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template."""
    return saved(chat_templates.lm("chatml"), tmp_path_factory.mktemp("instruct"))


@pytest.mark.parametrize(("template", "mode"), [("chat", "Chat"), ("none", "Prompt")])
def test_play_opens_in_the_mode_the_edit_was_measured_in(
    instruct: Path, tmp_path: Path, template: str, mode: str
) -> None:
    edit = edits.make(chat_templates.lm("chatml"), "scale")
    save_delta(edit, instruct, tmp_path / "edit", notes={"template": template})
    assert mode_of(tmp_path / "edit", instruct) == mode
    run = fabricated_run.write_run(tmp_path / "run", model=str(instruct))
    record = json.loads((run / "run.json").read_text())
    record.pop("sha256", None)
    record["config"]["template"] = template
    write_sealed(run / "run.json", record)
    assert mode_of(run) == mode


def test_an_instruct_model_alone_opens_as_a_chat(instruct: Path) -> None:
    assert mode_of(instruct) == "Chat"
