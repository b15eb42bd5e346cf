"""What tests of a study's folder start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.made_study import Made


@pytest.fixture
def made(tmp_path: Path) -> Made:
    study = Made(tmp_path / "run")
    assert study.run() == ["probe", "pairs", "train"]
    return study
