"""What tests of a study's folder start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from dialdown.study import Config, load_config
from helpers.made_study import Made


@pytest.fixture(scope="session")
def small(study_file: Path) -> Config:
    """The settings of the tiny study."""
    return load_config(file=study_file)


@pytest.fixture
def made(small: Config, tmp_path: Path) -> Made:
    study = Made(tmp_path / "run", small)
    assert study.run() == ["probe", "pairs", "train"]
    return study
