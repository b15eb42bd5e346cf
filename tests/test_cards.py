"""How values show themselves: one line in a terminal, a card in a notebook."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dialdown as dd
from dialdown.evaluation import Estimate, Row
from dialdown.models import LM
from dialdown.neurons import NeuronMeans
from helpers import tiny

EVIL = '<script>alert("a & b")</script>'


class Tags(HTMLParser):
    """The tags of a card in order; those left open, and what it says."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []
        self.said = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said += data


def means(lm: LM) -> NeuronMeans:
    grid = np.random.default_rng(0).standard_normal((lm.view.n_layers, lm.view.n_neurons))
    return NeuronMeans(grid, 40, "strict", lm.describe())


def values(lm: LM) -> dict[str, Any]:
    """Each kind of value a user holds, with a hostile text wherever one can be."""
    named = LM(lm.model, lm.tokenizer, lm.view, EVIL)
    direction = dd.Direction(EVIL, np.ones(tiny.WIDTH), "residual", {"accuracy": 0.9, EVIL: EVIL})
    before = means(named)
    table = dd.neuron_table(named, direction, before)
    edit = dd.edit(table, alpha=0.5, beta=0.3, kind="scale").called(EVIL)
    row = Row(EVIL, EVIL, "", "", "scale", "strict", None, 0.5, 0.3, 7, {}, {})
    estimate = {"toxicity": Estimate(0.25, 0.125, 0.5, 8), EVIL: Estimate(1, 0, 2, 8)}
    return {
        "LM": named,
        "Direction": direction,
        "NeuronMeans": before,
        "NeuronTable": table,
        "Intervention": edit,
        "Row": Row(**{**vars(row), "metrics": estimate}),
        "PairSet": dd.PairSet((dd.Pair(EVIL, " a", " b"),), {"scorer": EVIL}),
        "Suite": dd.Suite([EVIL], [], EVIL * 9, [Judge()]),
    }


class Judge:
    name, caveat, record = EVIL, "", {}

    def score(self, texts: Any) -> Any:
        return np.zeros(len(texts))


KINDS = ("LM", "Direction", "NeuronMeans", "NeuronTable", "Intervention", "Row", "PairSet", "Suite")


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_is_one_line_and_a_card(llama: LM, kind: str) -> None:
    value = values(llama)[kind]
    assert repr(value).startswith(f"{kind}(")
    assert "\n" not in repr(value)
    assert len(repr(value)) < 300
    card = Tags(value._repr_html_())
    assert set(card.seen) <= {"div", "strong", "table", "tr", "td", "th", "span"}
    assert card.open == []


def test_a_delta_is_one_line_and_a_card(tmp_path: Path) -> None:
    tiny.lm("llama").model.save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    base = dd.load(tmp_path / "base")
    table = dd.neuron_table(base, dd.random_direction(base), means(base))
    edit = dd.edit(table, alpha=0.5, beta=0.3, kind="scale")
    delta = dd.save_delta(edit, tmp_path / "base", tmp_path / "delta", notes={"why": EVIL})
    assert repr(delta).startswith("Delta(Intervention(")
    card = Tags(delta._repr_html_())
    assert EVIL in card.said
    assert "script" not in card.seen


def test_what_the_numbers_are(llama: LM) -> None:
    shown = values(llama)
    assert "3 layers × 24 neurons" in repr(shown["LM"])
    assert "accuracy 0.900" in repr(shown["Direction"])
    assert "37 of 72 neurons, α 0.5, β 0.3" in repr(shown["Intervention"])
    assert "toxicity 0.250 [0.125, 0.500]" in repr(shown["Row"])
    bars = [tag for tag in Tags(shown["NeuronMeans"]._repr_html_()).seen if tag == "span"]
    assert len(bars) == tiny.LAYERS


def test_a_table_is_a_data_frame(llama: LM) -> None:
    pytest.importorskip("pandas")
    table = values(llama)["NeuronTable"]
    polars, pandas = table.to_polars(), table.to_pandas()
    assert polars.columns == [*pandas.columns] == ["layer", "neuron", *table.columns, "group"]
    np.testing.assert_array_equal(polars["cosine"].to_numpy(), table.grid("cosine").ravel())
    np.testing.assert_array_equal(pandas["cosine"].to_numpy(), table.grid("cosine").ravel())


def test_without_pandas_it_says_so(llama: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    table = values(llama)["NeuronTable"]
    with pytest.raises(dd.DialdownError, match=r"pip install pandas.*to_polars"):
        table.to_pandas()


def test_the_version_is_the_package_s() -> None:
    assert dd.__version__ == version("dialdown")
