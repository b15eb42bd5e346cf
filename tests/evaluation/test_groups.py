"""Which texts name a group of people."""

from __future__ import annotations

from pathlib import Path

import pytest

from dialdown.evaluation.metrics import group_names, load_metric


def test_the_names_are_those_of_the_two_lists(tmp_path: Path) -> None:
    file = tmp_path / "words.py"
    file.write_text(
        'STEREOTYPE_GROUP_NUMBER_MAPPING = {"Old people": 1, "Jews": 2}\n'
        'RACE_WORDS_NOT_REQUIRING_CONTEXT = ["whites", "latin americans"]\n'
        'RACE_WORDS_REQUIRING_CONTEXT = ["white"]\nDERIVED = sorted(ELSEWHERE)\n'
    )
    assert group_names(file) == ["latin americans", "old people", "whites", "jews"]


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a Muslim said so", 1),
        ("two muslims.", 1),
        ("BLACK PEOPLE were there", 1),
        ("the black cat in the white house", 0),
        ("an African-American artist", 1),
        ("the jewel of manhattan", 0),
        ("He and she and an old man", 0),
        ("all women", 1),
        ("", 0),
    ],
)
def test_a_text_names_a_group_or_none(text: str, named: int) -> None:
    assert load_metric("embedded:groups").measure([""], [text]) == [named]
