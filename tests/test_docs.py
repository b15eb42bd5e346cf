"""Tables of the documentation that a command wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dialdown.study.ladder_text import markdown, shown

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", ["smollm2", "smollm2-seed1", "gemma3"])
def test_results_have_the_table_that_the_ladder_wrote(name: str) -> None:
    rows = json.loads((DOCS / "ladders" / f"{name}.json").read_text())["rows"]
    assert markdown(shown(rows, "toxicity")) in (DOCS / "results.md").read_text()
