"""Stages of a study through their commands: stopped, alone, and with a tuned model given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import dialdown as dd
from dialdown import DialdownError
from dialdown.cli.summary import show_neurons, show_sentences
from dialdown.data import corpora
from dialdown.files import read_json
from dialdown.report.stage import RUN
from dialdown.study import Study, load_config
from dialdown.study import stages as study
from dialdown.study.context import Workspace
from dialdown.terminal import Terminal
from helpers import tiny
from helpers.commands import run_until
from helpers.study_files import write_lines, write_study


def test_interrupted_sampling_goes_on_where_it_stopped(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    original = study.candidates

    def interrupt(
        lm: Any, prompts: Any, scorer: Any, settings: Any, start: int, **rest: Any
    ) -> Any:
        started.append(start)
        if started == [0, 6]:
            raise KeyboardInterrupt
        return original(lm, prompts, scorer, settings, start, **rest)

    monkeypatch.setattr(study, "candidates", interrupt)
    arguments = ["pairs", study_file, "--out", tmp_path / "run", "--set", "pairs.batch_size=6"]
    assert run_until(*arguments).exit_code == 130
    result = run_until(*arguments)
    assert result.exit_code == 0, result.exception
    assert started[:3] == [0, 6, 6]
    assert len(set(started)) == len(started) - 1


def test_too_few_pairs_lose_nothing(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    result = run_until("pairs", study_file, "--out", folder, "--set", "pairs.margin=0.999")
    assert isinstance(result.exception, DialdownError)
    assert "of 12 pairs differ by 0.999" in str(result.exception)
    monkeypatch.setattr(study, "candidates", None)
    # Neither the probe nor a single continuation is made again.
    result = run_until("pairs", study_file, "--out", folder)
    assert result.exit_code == 0, result.exception
    assert "probe: done before" in result.output
    assert len(dd.PairSet.load(folder / "pairs.jsonl").pairs) == 12
    assert json.loads((folder / "run.json").read_text())["config"]["pairs"]["margin"] == 0


def test_a_stage_command_stops_after_its_stage(study_file: Path, tmp_path: Path) -> None:
    assert run_until("probe", study_file, "--out", tmp_path / "run").exit_code == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert set(run["stages"]) == {"probe"}
    assert set(run["stages"]["probe"]["strict"]) >= {"accuracy", "auc"}


def test_the_probe_of_a_study_is_judged_on_whole_reviews(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"text": f"Film {i} was about as it was. I saw film {i} in May.", "label": i % 2}
        for i in range(200)
    ]
    pl.DataFrame(rows).write_csv(tmp_path / "sample.csv")
    monkeypatch.setattr(corpora, "fetch", lambda _: tmp_path)
    flags = {"probe": {"texts": "embedded:imdb", "count": 120}}
    work = Workspace(load_config(file=study_file, flags=flags), tmp_path)
    study.find_directions(work)
    assert 60 <= work.probe("strict").record["groups"] < 120


def test_labelled_texts_with_both_labels_are_left_out_and_said(
    study_file: Path, tmp_path: Path
) -> None:
    given = Path(load_config(file=study_file).probe.texts).read_text(encoding="utf-8")
    twice = [{"text": "such a good cat", "label": label} for label in (0, 1)]
    write_lines(tmp_path / "l.jsonl", [*map(json.loads, given.splitlines()), *twice])
    flags = {"probe": {"texts": str(tmp_path / "l.jsonl")}}
    work = Workspace(load_config(file=study_file, flags=flags), tmp_path)
    study.find_directions(work)
    assert work.notes.take()["notes"][0] == {
        "sentence": "of the labelled texts 1 stood there with both labels, and were left out",
        "counts": {"texts": 1},
    }


def test_a_tuned_model_of_another_shape_is_refused(study_file: Path, tmp_path: Path) -> None:
    wider = tiny.lm("llama", intermediate_size=32)
    wider.model.save_pretrained(tmp_path / "wider")
    wider.tokenizer.save_pretrained(tmp_path / "wider")
    result = run_until(
        "train", study_file, "--out", tmp_path / "run", "--tuned", tmp_path / "wider"
    )
    assert isinstance(result.exception, DialdownError)
    assert "n_neurons 32" in str(result.exception)


def test_a_diff_of_a_model_with_itself_says_so_everywhere(tmp_path: Path) -> None:
    """It is a sound check of a set-up, and must not be read as a tuning that did nothing."""
    file = write_study(tmp_path)
    flags = {"model": str(tmp_path / "model"), "tuned": str(tmp_path / "model")}
    Study(load_config(preset="diff", file=file, flags=flags), tmp_path / "run", stages=RUN).run()
    said = read_json(tmp_path / "run" / "run.json")["stages"]["neurons"]["equal"]
    assert "The tuned model is the base model" in said
    assert said in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for show in (show_neurons, show_sentences):
        console = Terminal(record=True, width=300)
        show(tmp_path / "run", console)
        assert console.export_text().rstrip().endswith(said)
