"""Pairs as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from dialdown import DialdownError
from dialdown.data import Pair, PairSet


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    pairs = PairSet(
        (Pair("p\n", " é\u2028\x85", " “bad”\r\n"), Pair("q", " a", " b")),
        {"scorer": "fake", "prompts_used": 3},
    )
    pairs.save(path)
    assert PairSet.load(path) == pairs


def test_plain_json_lines_are_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"prompt": "p", "chosen": "c", "rejected": "r", "more": 1}\n\n', encoding="utf-8"
    )
    assert PairSet.load(path) == PairSet((Pair("p", "c", "r"),), {})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_pairs_in_every_encoding_that_says_which_it_is(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "pé", "chosen": "c", "rejected": "r"}\n', encoding=encoding)
    assert PairSet.load(path).pairs == (Pair("pé", "c", "r"),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ('{"prompt": "p", "chosen": "c"}', "is not a pair, as it has no 'rejected'"),
        ("[1]", "is not a JSON object"),
        ('"text"', "is not a JSON object"),
        ("3", "is not a JSON object"),
        ('{"prompt": "p", "chosen": null, "rejected": "r"}', "The chosen in line . of .* is null"),
        (
            '{"prompt": "p", "chosen": "c", "rejected": 3}',
            "The rejected in line . of .* is 3, which is not text",
        ),
        (
            '{"prompt": [{"role": "user", "content": "p"}], "chosen": "c", "rejected": "r"}',
            "pass the text that its chat",
        ),
        (r'{"prompt": "p\ud83d", "chosen": "c", "rejected": "r"}', "half of a character"),
    ],
)
def test_a_line_that_is_no_pair(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    for number, before in enumerate(["", '{"prompt": "p", "chosen": "c", "rejected": "r"}\n']):
        path.write_text(before + line + "\n", encoding="utf-8")
        with pytest.raises(DialdownError, match=message) as error:
            PairSet.load(path)
        assert f"line {number + 1} of " in str(error.value).lower()
    with pytest.raises(DialdownError, match="does not exist"):
        PairSet.load(tmp_path / "none.jsonl")
