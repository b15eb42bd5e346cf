"""What tests of a study's folder start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from dialdown.study import Config, load_config
from helpers.stub_study import StubStudy


@pytest.fixture(scope="session")
def small(study_file: Path) -> Config:
    """The settings of the tiny study."""
    return load_config(file=study_file)


@pytest.fixture
def study(small: Config, tmp_path: Path) -> StubStudy:
    """A study that has run once."""
    stub = StubStudy(tmp_path / "run", small)
    assert stub.run() == ["probe", "pairs", "train"]
    return stub
