"""What the app shows, made without a browser: texts as HTML, sources, the neuron list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from dialdown.app.neurons import ANY, card, legend, neuron_frame, select
from dialdown.app.points import listed, sets
from dialdown.app.shelf import Shelf
from dialdown.app.source import find_source
from dialdown.app.words import coloured, marked, safe, says
from dialdown.errors import DialdownError
from dialdown.exporting.delta import save_delta
from dialdown.models.lm import LM
from dialdown.neurons.activations import token_activations
from dialdown.neurons.logit_lens import logit_lens, word_tokens, writers
from dialdown.neurons.table import GROUPS, NeuronTable
from helpers import edits, fabricated_run, tiny
from helpers.folders import saved


def test_words_that_the_reference_does_not_have_are_marked() -> None:
    assert (
        marked("the cat ran off", "the cat sat") == ("the cat <mark>ran</mark><mark> off</mark>")
        or marked("the cat ran off", "the cat sat") == "the cat <mark>ran off</mark>"
    )
    assert marked("same words", "same words") == "same words"


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a & b", 'say "hi"']
)
def test_no_text_becomes_markup(text: str) -> None:
    for html in (safe(text), marked(text, ""), coloured([text], [1.0], 1.0)):
        assert "<script" not in html
        assert "<img" not in html
        assert "& b" not in html


def test_half_a_character_is_shown_as_a_replacement() -> None:
    assert safe("a\ud83d") == "a?"


def test_a_command_in_a_sentence_is_shown_as_code() -> None:
    assert "<code>dialdown run</code> &lt;b&gt;" in says("`dialdown run` <b>")
    assert says("") == ""


def test_a_folder_that_is_nothing_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DialdownError, match=r"holds neither a study .* nor an edit .* nor a model"):
        find_source(str(tmp_path))
    with pytest.raises(DialdownError, match="is not there"):
        find_source(str(tmp_path / "gone"))
    with pytest.raises(DialdownError, match="There is no model 'smollm2-135m'"):
        find_source("smollm2-135m")
    with pytest.raises(DialdownError, match="is not a folder"):
        find_source(str(tmp_path / "notes.txt"))


def test_a_base_is_for_an_edit_alone(tmp_path: Path) -> None:
    run = fabricated_run.write_run(tmp_path / "run")
    with pytest.raises(DialdownError, match="leave out --base"):
        find_source(str(run), base="embedded:smollm2-135m")


def test_the_latest_run_is_opened_where_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_source(None).given == "embedded:smollm2-135m"
    fabricated_run.write_run(tmp_path / "runs" / "demo")
    assert find_source(None).study == Path("runs/demo")


def test_neurons_are_filtered_and_sorted(tmp_path: Path) -> None:
    run = fabricated_run.write_run(tmp_path / "run")
    frame = neuron_frame(NeuronTable.load(run / "neurons.parquet"), None)
    assert frame.height == fabricated_run.LAYERS * fabricated_run.NEURONS
    first = select(frame, layer=3, group="TP", sort="delta", smallest=True)
    assert set(first["layer"]) == {3}
    assert set(first["group"]) == {"TP"}
    assert first["delta"].is_sorted()
    shifts = frame.select((pl.col("after") - pl.col("before") - pl.col("shift")).abs().max())
    assert shifts.item() == 0
    assert select(frame, group=ANY, sort="cosine")["cosine"].is_sorted(descending=True)


def test_groups_are_explained_as_they_were_made(llama: LM, tmp_path: Path) -> None:
    tuned = NeuronTable.load(fabricated_run.write_run(tmp_path / "run") / "neurons.parquet")
    base = {name: tuned.columns[name] for name in ("cosine", "mean_base", "projection_base")}
    untuned = NeuronTable(base, tuned.record)
    for table, compared in ((tuned, True), (untuned, False)):
        frame = neuron_frame(table, None)
        assert all(
            ("only neurons that write less after it are in a group" in html) == compared
            for html in (legend(frame), card(llama, frame, 0, 0))
        )
        assert ("without a tuned model every neuron is in a group" in legend(frame)) != compared
        assert (set(frame["group"]) == set(GROUPS)) != compared


def test_a_neuron_that_writes_a_word_has_its_token_first_in_the_lens() -> None:
    lm = tiny.lm("llama")
    # A neuron that writes along a token's unembedding row and no other does.
    token = word_tokens(lm, "cat")[-1]
    assert lm.tokenizer.decode([token]) == " cat"
    with torch.no_grad():
        lm.view.layers[1].columns[:, 5] = -lm.view.unembedding.weight[token] * 3
    frame = writers(lm, token, count=4)
    assert frame.select("layer", "neuron", "sign").row(0) == (1, 5, -1)
    assert frame["score"].is_sorted(descending=True)
    vector = -lm.view.layers[1].value_vectors()[5].numpy()
    top = [text for text, _ in logit_lens(lm, vector, k=len(tiny.VOCABULARY))]
    assert frame["rank"][0] == top.index(" cat") + 1


def test_activations_are_those_of_each_text_alone(llama: LM) -> None:
    encoded = llama.encode(["the cat", "a much longer text than that", "he"])
    together = token_activations(llama, encoded, 2, batch_size=2)
    for ids, values in zip(encoded, together, strict=True):
        (alone,) = token_activations(llama, [ids], 2)
        assert values.shape == (len(ids), tiny.NEURONS)
        assert abs(values - alone).max() < 1e-5
    with pytest.raises(DialdownError, match="has no layer 9"):
        token_activations(llama, encoded, 9)


def test_rows_of_a_run_that_is_going_on_appear_when_it_is_read_again(tmp_path: Path) -> None:
    run = fabricated_run.write_run(tmp_path / "run")
    results = (run / "results.json").rename(tmp_path / "results.json")
    tables = [path.rename(tmp_path / path.name) for path in run.glob("neurons*.parquet")]
    shelf = Shelf(find_source(str(run)))
    assert (shelf.run, shelf.table, shelf.problem, shelf.choices) == (None, None, "", [])
    assert sets(shelf.run) == []
    for path in (results, *tables):
        path.rename(run / path.name)
    shelf.reload()
    assert shelf.run is not None
    assert sets(shelf.run) == ["strict", "paper"]
    assert shelf.table is not None
    assert listed(shelf.run, "strict").height == len(fabricated_run.MAIN)


def test_an_edit_that_was_made_anew_is_the_one_that_acts(tmp_path: Path) -> None:
    lm = tiny.lm("llama")
    (run := fabricated_run.write_run(tmp_path / "run") / "interventions").mkdir()
    for place in (tmp_path / "delta", tmp_path / "export" / "dialdown"):
        save_delta(edits.make(lm, "scale"), saved(lm, tmp_path / "model"), place)
    edits.make(lm, "scale").save(run / "strict-edit_probe_scale.safetensors")
    for folder, files in (("delta", "delta"), ("export", "export/dialdown"), ("run", "")):
        shelf = Shelf(find_source(str(tmp_path / folder)))
        name = shelf.first or next(iter(shelf.edits))
        act, before = shelf.act(name, 1.0), shelf.edit(name).gain
        shelf.reload()
        assert shelf.act(name, 1.0) is act
        again = edits.make(lm, "scale", seed=5)
        if files:
            save_delta(again, tmp_path / "model", tmp_path / files)
        else:
            again.save(run / "strict-edit_probe_scale.safetensors")
        shelf.reload()
        assert not np.allclose(shelf.edit(name).gain, before)
        assert np.allclose(shelf.edit(name).gain, again.gain)
        assert shelf.act(name, 1.0).edit.key == shelf.edit(name).key != act.edit.key


def test_damaged_rows_are_one_sentence(tmp_path: Path) -> None:
    run = fabricated_run.write_run(tmp_path / "run")
    (run / "results.json").write_text('{"rows": [{"intervention": "none"}]}')
    assert "repeat the evaluation" in Shelf(find_source(str(run))).problem
