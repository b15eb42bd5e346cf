"""What a stage leaves out is said: in run.json, and from there on the page and in the last
lines.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dialdown import DialdownError
from dialdown.evaluation.row import Measured
from dialdown.models.decoding import Decoder
from dialdown.study import Study, load_config
from dialdown.study.context import Workspace
from dialdown.study.measure import changed, rounded_otherwise
from dialdown.study.notes import StageNotes, note_reading, note_training, noted
from dialdown.training import DPOSettings, TrainingLog
from helpers.memory import short_of_memory
from helpers.study_files import write_study

LOG = TrainingLog(10, 10, 80, 8, (), (), (), (), (), (), (), (), (), 1.0)
SETTINGS = DPOSettings(batch_size=4, accumulation=2, epochs=1, eval_pairs=8)


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (LOG, []),
        (replace(LOG, best_step=7), ["the weights of step 7 of 10 were kept"]),
        (replace(LOG, steps=6, best_step=6), ["training stopped after 6 of 10 steps"]),
        (replace(LOG, eval_pairs=5), ["5 pairs were held out for validation"]),
    ],
)
def test_no_training_ends_early_or_goes_back_unsaid(log: TrainingLog, says: list[str]) -> None:
    notes = StageNotes()
    note_training(notes, log, SETTINGS)
    sentences = [note["sentence"] for note in notes.take()["notes"]]
    assert len(sentences) == len(says)
    assert all(sentence.startswith(start) for sentence, start in zip(sentences, says, strict=True))
    assert notes.take() == {"notes": []}


@pytest.mark.parametrize(("nats", "said"), [(3.4, 0), (10.64, 1), (float("nan"), 0)])
def test_a_model_that_cannot_read_is_not_measured_unsaid(nats: float, said: int) -> None:
    notes = StageNotes()
    note_reading(notes, Measured({"log_ppl": [nats, nats]}, [7, 7], ["a", "b"], ["fake"], 0))
    sentences = [note["sentence"] for note in notes.take()["notes"]]
    assert len(sentences) == said
    assert all("at 10.6 nats per token" in sentence for sentence in sentences)


def test_no_text_is_cut_unsaid() -> None:
    notes = StageNotes()
    notes.cut("prompts", [[1, 2, 3], [1, 2], [1] * 9], 2)
    notes.cut("short ones", [[1, 2]], 2)
    [note] = notes.take()["notes"]
    assert note == {
        "sentence": "2 of 3 prompts were cut to their first 2 tokens",
        "counts": {"longer": 2, "texts": 3, "longest": 2},
    }


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("noted")
    settings = {
        "evaluation.max_prompt_tokens": 3,
        "probe.max_tokens": 4,
        "pairs.margin": 0.01,
        "pairs.count": 4,
    }
    config = load_config(preset="smoke", file=write_study(root), flags=settings)
    study = Study(config, root / "run")
    study.run(until="pairs")
    return study.work


def test_what_the_first_stages_cut_and_left_out_stands_in_run_json(work: Workspace) -> None:
    run = json.loads((work.folder / "run.json").read_text())
    sentences = {
        stage: [note["sentence"] for note in run["stages"][stage]["notes"]]
        for stage in ("probe", "pairs")
    }
    assert sentences["probe"] == ["40 of 40 texts of the probe were cut to their first 4 tokens"]
    used = json.loads((work.folder / "run.json").read_text())["stages"]["pairs"]["prompts_used"]
    assert (
        f"{used} of {used} prompts of the pairs were cut to their first 3 tokens"
        in sentences["pairs"]
    )
    told = [(stage, sentence) for stage, sentence in noted(run) if stage in sentences]
    assert told[:2] == [("probe", sentences["probe"][0]), ("pairs", sentences["pairs"][0])]


def test_rounding_is_measured_on_every_evaluation_prompt(work: Workspace) -> None:
    texts = work.evaluator(10).decoder.texts(work.evaluator(10).decoder.run()[:10])
    otherwise = rounded_otherwise(work)
    assert len(otherwise) == 10
    # A tiny model has no near ties, so another rounding changes none of them.
    assert changed(texts, otherwise) == {"changed": 0, "prompts": 10}
    assert changed(texts, [*otherwise[:-2], "a", "b"]) == {"changed": 2, "prompts": 10}


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts were decoded at once, each time."""
    sizes: list[int] = []
    run = Decoder.run

    def counted(decoder: Decoder, *given: Any, **options: Any) -> Any:
        tokens = run(decoder, *given, **options)
        sizes.append(decoder.batch_size)
        return tokens

    monkeypatch.setattr(Decoder, "run", counted)
    return sizes


@pytest.mark.parametrize(
    ("setting", "used", "otherwise"),
    [(1, [], 2), (2, [], 1), ("auto", [], 5), ("auto", [4], 2), (6, [1], 2), (1, [2], 3)],
)
def test_rounding_is_measured_in_batches_that_no_row_was_decoded_in(
    work: Workspace, decoded: list[int], setting: Any, used: list[int], otherwise: int
) -> None:
    settings = replace(work.config.evaluation, batch_size=setting)
    again = Workspace(work.config.model_copy(update={"evaluation": settings}), work.folder)
    again.lm = work.lm
    rounded_otherwise(again, used)
    assert decoded == [otherwise]


def test_an_evaluation_in_smaller_batches_than_planned_is_rounded_otherwise(
    work: Workspace, tmp_path: Path, decoded: list[int]
) -> None:
    steering = replace(work.config.interventions, families=("steering",))
    update = {
        "protocols": ("strict",),
        "interventions": steering,
        "tuned": work.config.model,  # training needs more texts at once
    }
    with short_of_memory(above=5):
        Study(work.config.model_copy(update=update), tmp_path / "short").run(until="evaluate")
    # Ten prompts were planned, and half of them is what fitted.
    *rows, otherwise = decoded
    assert 5 in rows
    assert otherwise not in rows


def test_a_smaller_batch_is_done_again_recorded_and_said(work: Workspace, tmp_path: Path) -> None:
    config = work.config.model_copy(
        update={
            "pairs": replace(work.config.pairs, batch_size="auto"),
            "protocols": ("strict",),
            "interventions": replace(work.config.interventions, families=("steering",)),
        }
    )
    folder = tmp_path / "short"
    with short_of_memory(above=4):
        Study(config, folder).run(until="pairs")
    run = json.loads((folder / "run.json").read_text())
    assert run["stages"]["base"]["batch_size"] <= 4
    for stage in ("probe", "pairs", "base"):
        said = [sentence for of, sentence in noted(run) if of == stage]
        assert any("texts at once did not fit into memory" in sentence for sentence in said), stage
    assert run["stages"]["pairs"]["batch_size"] == 56
    # Nor where the stage goes on later with the rows that are there.
    (folder / "stages" / "base.json").unlink()
    Study(config, folder).run(until="base")
    again = json.loads((folder / "run.json").read_text())["stages"]["base"]
    assert again["batch_size"] <= 4
    assert any("texts at once did not fit" in note["sentence"] for note in again["notes"])
    # Another number of prompts at once is not another study.
    goes_on = config.model_copy(update={"evaluation": replace(config.evaluation, batch_size=3)})
    assert Study(goes_on, folder).work.ledger.finished("base")


def test_memory_that_is_short_ends_with_a_setting_to_try(work: Workspace, tmp_path: Path) -> None:
    config = work.config.model_copy(
        update={
            "pairs": replace(work.config.pairs, batch_size=10),
            "protocols": ("strict",),
            "interventions": replace(work.config.interventions, families=("steering",)),
        }
    )
    says = r"not enough memory .*: set pairs\.batch_size to 5, or .*dtype to bfloat16"
    with short_of_memory(above=9), pytest.raises(DialdownError, match=says):
        Study(config, tmp_path / "run").run(until="pairs")
