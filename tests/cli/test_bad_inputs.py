"""Every bad input is one sentence on standard error and exit status 1 or 2: no traceback, and
nothing written.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import dialdown as dd
from dialdown.cli import main as cli
from dialdown.study.holding import LOCK
from dialdown.workers import quiet_libraries
from helpers import bad_files, bad_folders, bad_settings
from helpers.bad_inputs import Case, Inputs
from helpers.fabricated_run import write_run
from helpers.study_files import write_study

CASES = (*bad_files.CASES, *bad_settings.CASES, *bad_folders.CASES)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    root = tmp_path_factory.mktemp("given")
    study = write_study(root)
    lm = dd.load(root / "model")
    gain = 1 + np.random.default_rng(0).standard_normal((lm.view.n_layers, lm.view.n_neurons)) / 8
    edit = dd.Intervention(
        "gains", "scale", gain, np.zeros_like(gain), np.ones_like(gain, dtype=bool)
    )
    dd.save_delta(edit, root / "model", root / "edit")
    return Inputs(root, study, root / "model", root / "edit", write_run(root / "run"))


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Nothing may be fetched for an input that cannot work.
    monkeypatch.setenv("DIALDOWN_CACHE", str(tmp_path / "cache"))
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    quiet_libraries()


def state(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of everything below some folders, but for the lock that says who is at work in
    a run.
    """
    paths = [path for folder in folders for path in folder.rglob("*") if path.name != LOCK]
    return {
        path: (path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file()
    } | {path: (0, 0) for path in paths if path.is_dir()}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_bad_input_is_one_sentence_and_writes_nothing(
    case: Case,
    given: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = case.build(Inputs(tmp_path, given.study, given.model, given.edit, given.run))
    for name, value in case.environment:
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["dialdown", *arguments])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(case.typed), encoding="utf-8"))
    before = state(tmp_path, given.root)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert end.value.code in (1, 2)
    assert "Traceback" not in said.err + said.out
    assert "\x1b" not in said.err + said.out
    if end.value.code == 1:
        sentence = said.err.removeprefix("dialdown: ")
        assert sentence.endswith((".\n", "?\n"))
        assert sentence.count("\n") == 1
        assert ".." not in sentence.replace("...", "").replace("../", "")
        assert "?." not in sentence
        assert re.search(case.words, sentence), sentence
    else:
        assert re.search(case.words, said.err), said.err
    assert state(tmp_path, given.root) == before


def test_there_are_three_hundred_of_them_and_names_tell_them_apart() -> None:
    assert len(CASES) >= 300
    assert len({case.name for case in CASES}) == len(CASES)
