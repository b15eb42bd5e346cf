"""What the card of an exported folder says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dialdown import DialdownError
from dialdown.exporting.export import export
from dialdown.files import file_sha256
from dialdown.models import LM
from helpers.edits import exact, make
from helpers.folders import saved


@pytest.mark.parametrize(
    ("kinds", "clauses", "acts"),
    [
        (("shift", "steer"), ("changes", "adds one vector"), ("neurons", "the residual stream")),
        (("scale", "steer"), ("mean |gain - 1|", "adds one vector"), ("neurons", "stream")),
        (("affine", "attention"), ("changes", "attention in each"), ("neurons", "channels")),
        (("scale", "rank_one"), ("changes", "the MLP in each"), ("neurons",)),
        (("affine", "norms"), ("changes", "maps"), ("neurons", "outputs")),
        (("attention", "norms"), ("attention in each", "maps"), ("channels", "outputs")),
        (
            ("scale", "attention", "norms", "steer"),
            ("changes", "attention in each", "maps", "adds one vector"),
            ("neurons", "channels", "outputs", "stream"),
        ),
    ],
)
def test_every_part_of_an_edit_is_said(
    llama: LM, tmp_path: Path, kinds: Any, clauses: Any, acts: Any
) -> None:
    edit, *others = (exact(make(llama, kind, seed=place)) for place, kind in enumerate(kinds))
    for part in others:
        given = {name: getattr(part, name) for name in ("rank_one", "outputs", "vector")}
        edit = replace(edit, **{name: value for name, value in given.items() if value is not None})
    done = export(saved(llama, tmp_path / "base"), edit, tmp_path / "out", verify=False)
    card = (done.folder / "README.md").read_text()
    (sentence,) = re.findall(r"^`it` .*byte for byte\.$", card, re.MULTILINE)
    places = [sentence.index(clause) for clause in clauses]
    assert places == sorted(places)
    assert sentence.count("; it also ") == len(clauses) - 1
    for words in acts:
        assert words in repr(edit)
        assert words in edit._repr_html_()


def test_the_folder_is_complete_and_its_card_says_so(llama: LM, tmp_path: Path) -> None:
    base = saved(llama, tmp_path / "base")
    (base / "LICENSE").write_text("the licence")
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (base / "README.md").write_text(
        "---\nlicense: other\nlicense_name: ours\ntags: [x]\n---\n# Base\n"
    )
    (base / "optimizer.pt").write_text("not ours to copy")
    rows = [
        {"name": "base", "toxicity": [0.29, 0.25, 0.33]},
        {"name": "edited", "toxicity": [0.07, 0.05, 0.09]},
    ]
    notes = {
        "why": "So that it is kinder.",
        "rows": rows,
        "judge": "some-scorer",
        "caveat": "One judge.",
    }
    done = export(base, exact(make(llama, "scale")), tmp_path / "out", notes=notes)
    there = {
        str(path.relative_to(done.folder)) for path in done.folder.rglob("*") if path.is_file()
    }
    assert there == {*done.files, "README.md"}
    assert there >= {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "LICENSE",
        "chat_template.jinja",
    }
    assert there >= {"dialdown/edit.safetensors", "dialdown/edit.json"}
    assert "optimizer.pt" not in there
    card = (done.folder / "README.md").read_text()
    for name, digest in done.files.items():
        assert digest == file_sha256(done.folder / name)
        assert f"| {name} | `{digest}` |" in card
    head = card.split("---")[1]
    assert "base_model" not in head  # it is not a hub id
    for line in (
        "license: other",
        "license_name: ours",
        "library_name: transformers",
        "- dialdown",
    ):
        assert line in head
    for words in (
        "0.290 [0.250, 0.330]",
        "some-scorer",
        "One judge.",
        "So that it is kinder.",
        "dialdown apply",
    ):
        assert words in card
    for text in (
        card,
        (done.folder / "config.json").read_text(),
        (done.folder / "dialdown/edit.json").read_text(),
    ):
        assert str(tmp_path) not in text


def test_unknown_notes_are_refused(llama: LM, tmp_path: Path) -> None:
    base = saved(llama, tmp_path / "base")
    for notes, words in (
        ({"wy": "x"}, "did you mean 'why'"),
        ({"rows": [{"kl": [1.0]}]}, "three finite numbers"),
    ):
        with pytest.raises(DialdownError, match=words):
            export(base, make(llama, "scale"), tmp_path / "out", notes=notes)
