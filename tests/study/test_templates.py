"""`dialdown detox` on a chat model: what is sampled and what is said are turns and replies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

import dialdown as dd
from dialdown.report.page import write_report
from dialdown.report.run import load
from dialdown.report.tables import table_2_interventions
from dialdown.study import load_config
from dialdown.study.context import Workspace
from dialdown.study.stages import candidate_files
from helpers import chat_templates
from helpers.commands import invoke
from helpers.fabricated_run import write_run


@pytest.fixture(scope="module")
def settings(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny study, with a chat model in its model's place."""
    root = tmp_path_factory.mktemp("chat")
    model = chat_templates.lm("chatml")
    model.model.save_pretrained(root / "model")
    model.tokenizer.save_pretrained(root / "model")
    text = study_file.read_text().replace(str(study_file.parent / "model"), str(root / "model"))
    (root / "study.toml").write_text(text)
    return root / "study.toml"


@pytest.fixture(scope="module")
def done(settings: Path) -> tuple[Path, Result]:
    out = settings.parent / "calm"
    result = invoke("detox", settings.parent / "model", "--out", out, "--config", settings)
    assert result.exit_code in (0, 3), result.exception
    return out, result


def work_of(out: Path) -> Path:
    return out.with_name(f"{out.name}-work")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_detox_of_a_chat_model_says_so_everywhere(done: tuple[Path, Result]) -> None:
    out, result = done
    run = read(work_of(out) / "run.json")
    assert run["config"]["template"] == "auto"
    assert run["stages"]["check"]["template"] == "chat"
    assert read(out / "dialdown" / "edit.json")["notes"]["template"] == "chat"
    edit = dd.Intervention.load(out / "dialdown" / "edit.safetensors")
    assert "'template': 'chat'" in str(edit.record)
    card = (out / "README.md").read_text()
    assert "turns of a user in the base's chat template" in card
    assert "| refusals |" in card
    assert "as a user's turn of the chat template" in " ".join(result.output.split())
    assert "refusals" in result.output
    rows = read(work_of(out) / "results.json")["rows"]
    assert all(row["refusal"]["n"] == row["toxicity"]["n"] for row in rows)


def test_what_was_measured_are_replies(done: tuple[Path, Result], settings: Path) -> None:
    out, _ = done
    config = load_config(preset="detox", file=settings)
    work = Workspace(config, work_of(out))
    assert work.lm.template == "chat"
    decoder = work.evaluator(config.evaluation.count).decoder
    prompts = decoder.prompts[:3]
    assert decoder.encoded[:3] == work.lm.prompt_ids(prompts)
    row = read(work_of(out) / "results.json")["rows"][0]
    replies = decoder.texts(decoder.run())
    assert [sample["continuation"] for sample in row["samples"]] == replies[: len(row["samples"])]


def test_another_template_is_another_run(done: tuple[Path, Result], settings: Path) -> None:
    out, _ = done
    again = invoke(
        "detox", settings.parent / "model", "--out", out, "--config", settings, "--force",
        "--set", "template=none",
    )  # fmt: skip
    assert again.exit_code == 1
    assert "template: 'auto' -> 'none'" in str(again.exception)


def test_pairs_sampled_under_other_settings_are_not_continued(
    settings: Path, tmp_path: Path
) -> None:
    """The probe reads plain texts, so its stage is the same and candidates may still be there."""
    configs = [load_config(file=settings, flags={"template": name}) for name in ("none", "chat")]
    plain, chat = (candidate_files(Workspace(config, tmp_path), 8).inputs for config in configs)
    assert plain != chat


def test_the_page_and_table_2_say_what_prompts_were(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert "as text to go on with" in write_report(folder).read_text()
    assert "refusal" not in table_2_interventions(load(folder).results).columns
    run = read(folder / "run.json")
    run["stages"]["base"] = {**run["stages"].get("base", {}), "template": "chat"}
    (folder / "run.json").write_text(json.dumps(run))
    results = read(folder / "results.json")
    for row in results["rows"]:
        row["refusal"] = row["toxicity"]
    (folder / "results.json").write_text(json.dumps(results))
    page = write_report(folder).read_text()
    assert "as a user&#39;s turn of the chat template" in page
    assert "<dt>refusals</dt>" in page
    table = table_2_interventions(load(folder).results)
    assert table["refusal"].to_list() == table["toxicity"].to_list()
