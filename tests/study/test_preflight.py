"""What a run needs is checked before its first stage: the sentence names the setting, and no folder
is left.
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dialdown import DialdownError
from dialdown.data import corpora
from dialdown.study import Config, Study, load_config
from dialdown.study.context import Workspace
from dialdown.study.preflight import check_inputs
from dialdown.study.run import STUDY
from dialdown.study.stages import find_directions
from helpers import tiny
from helpers.study_files import write_lines


@pytest.fixture(scope="module")
def file(study_file: Path) -> Path:
    return study_file


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    tiny.model("llama", seed=1).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def settings(file: Path, **flags: Any) -> Config:
    return load_config(
        file=file, flags={key.replace("__", "."): value for key, value in flags.items()}
    )


def test_a_study_that_can_run_passes(file: Path, tmp_path: Path) -> None:
    work = Workspace(settings(file), tmp_path / "run")
    check_inputs(work, [*STUDY])
    assert not (tmp_path / "run").exists()


def test_labelled_texts_are_read_once_for_the_check_and_the_stage(
    file: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_bytes(Path(settings(file).probe.texts).read_bytes())
    work = Workspace(settings(file, probe__texts=str(texts)), tmp_path / "run")
    check_inputs(work, ["probe"])
    texts.unlink()
    find_directions(work)
    assert (tmp_path / "run" / "direction-probe.safetensors").exists()


def test_a_study_makes_no_pairs_from_sentences_that_it_evaluates_on(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = "The well @-@ known ship , Mary , sank at sea ."
    rows = [f" {sentence} It sank in May and not before that . \n", f" A{sentence} B{sentence} \n"]
    with gzip.open(tmp_path / "train.raw.gz", "wt", encoding="utf-8") as packed:
        packed.write("".join(rows))
    write_lines(tmp_path / "test.jsonl", [{"text": "The wellknown ship Mary sank at sea."}])
    monkeypatch.setattr(corpora, "fetch", lambda _: tmp_path)
    trains = {"training_prompts": "embedded:wikitext2"}
    for reads, prompts in (
        ({}, {sentence, f"A{sentence}"}),
        ({"evaluation__text": "embedded:wiki"}, {f"A{sentence}"}),
        ({"evaluation__pairs": "embedded:wiki"}, {f"A{sentence}"}),
    ):
        work = Workspace(settings(file, **trains, **reads), tmp_path)
        assert {*work.prompts.training} == prompts


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            {"evaluation__count": 15},
            "evaluation.count: 15 were asked for but there are 14 prompts .*: ask for at most 14",
        ),
        (
            {"pairs__count": 61},
            "61 pairs .*: lower pairs.count or evaluation.count, or set training_prompts",
        ),
        (
            {"probe__count": 62},
            "probe.count: 31 were asked for but there are 30 texts labelled 1 .*: ask for at most",
        ),
        (
            {"probe__count": 12},
            "probe.texts and probe.count: The classes have 6 and 6 texts, too few",
        ),
        ({"evaluation__pairs_count": 5}, "evaluation.pairs_count: 5 were asked for"),
        ({"evaluation__window": 97}, "set evaluation.window to 96 or less"),
        (
            {"evaluation__window": 90, "evaluation__kl_windows": 9, "evaluation__max_windows": 9},
            "evaluation.kl_windows",
        ),
        ({"evaluation__max_new_tokens": 92}, "evaluation.max_new_tokens"),
        ({"pairs__max_new_tokens": 92}, "pairs.max_new_tokens"),
        ({"probe__max_tokens": 97}, "lower probe.max_tokens"),
        (
            {"probe__positive": ["the"], "probe__negative": ["The"]},
            "probe.positive and probe.negative: The word 'the'",
        ),
        ({"token_judge": "none.txt"}, "token_judge: none.txt does not exist"),
        ({"token_judge": "openai:"}, "names no model"),
        ({"evaluation__judge": "none"}, "evaluation.judge: There is no toxicity scorer"),
        (
            {"evaluation__pair_scorer": "none"},
            "evaluation.pair_scorer: There is no toxicity scorer",
        ),
        ({"evaluation__text": "none.txt"}, "evaluation.text: none.txt does not exist"),
        (
            {"evaluation__pairs": "none.csv"},
            "evaluation.pairs and evaluation.pairs_count: none.csv does not exist",
        ),
        ({"training_prompts": "none.txt"}, "none.txt does not exist"),
        ({"tuned": "/none/at/all"}, "tuned: "),
        ({"model": "/none/at/all"}, "The model '/none/at/all'"),
        ({"front__count": 11}, "lower front.count"),
    ],
)
def test_what_is_missing_is_named_by_its_setting_before_the_first_stage(
    flags: dict[str, Any], words: str, file: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    with pytest.raises(DialdownError, match=words):
        Study(settings(file, **flags), tmp_path / "runs" / "run", announce=said.append).run()
    assert said == []
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_refused_before_the_first_stage(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    words = r"run will take up to \d+ MiB, most of it in the stage \w+, and 1 MiB are free there"
    with pytest.raises(DialdownError, match=words):
        Study(settings(file), tmp_path / "runs" / "run").run()
    assert list(tmp_path.iterdir()) == []


def test_a_given_tuned_model_needs_no_prompts_to_train_on(
    file: Path, tuned: Path, tmp_path: Path
) -> None:
    config = settings(file, tuned=str(tuned), evaluation__count=14)
    assert config.training_prompts is not None
    alone = config.model_copy(update={"training_prompts": None})
    work = Workspace(alone, tmp_path / "run")
    check_inputs(work, [*STUDY])
    assert len(work.prompts.evaluation) == 14
    assert work.prompts.training == ()


def test_a_stage_alone_needs_no_more_than_it_reads(file: Path, tmp_path: Path) -> None:
    config = settings(
        file, evaluation__text="none.txt", token_judge="none.txt", evaluation__judge="none"
    )
    check_inputs(Workspace(config, tmp_path / "run"), ["probe", "pairs"])
    check_inputs(Workspace(settings(file, model="/none"), tmp_path / "run"), ["report"])


def test_a_study_that_goes_on_is_checked_for_what_is_left(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    Study(settings(file), folder).run(until="probe")
    before = {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.json"
    }
    with pytest.raises(DialdownError, match=r"token_judge: none\.txt"):
        Study(settings(file, token_judge="none.txt"), folder).run()
    after = {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.json"
    }
    assert before == after
    assert set(json.loads((folder / "run.json").read_text())["stages"]) == {"probe"}
