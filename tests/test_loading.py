"""A model is loaded whole or not at all: what is refused, in one sentence, and what is no reason to
refuse (METHOD §1).
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import dialdown as dd
from dialdown.cli.summary import show_neurons, show_rows
from dialdown.errors import DialdownError
from dialdown.exporting.checkpoint import open_checkpoint
from dialdown.exporting.export import export
from dialdown.files import read_json
from dialdown.models.decoding import Decoder
from dialdown.models.lm import LM, check_pair, load_tuned, same_weights, tokens
from dialdown.models.mlp import MLPView
from dialdown.report.stage import RUN
from dialdown.study.config import load_config
from dialdown.study.run import Study
from helpers import broken_models as broken
from helpers import tiny
from helpers.study_files import write_study


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return broken.whole(tmp_path_factory.mktemp("models") / "whole")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return broken.adapter(tmp_path_factory.mktemp("adapters") / "whole")


def made(source: Path, folder: Path, build: broken.Build) -> Path:
    """A copy of a whole folder, built on."""
    shutil.copytree(source, folder)
    build(folder)
    return folder


def refusal(attempt: Callable[[], Any], folder: Path) -> str:
    """The one sentence that an attempt ends in, which leaves the folder as it was."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(DialdownError) as caught:
        attempt()
    assert sorted(folder.rglob("*")) == before
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert ": " in sentence  # what to pass instead
    return sentence


def cases(table: dict[str, Any]) -> Any:
    return pytest.mark.parametrize("case", [*table])


@cases({**broken.MODELS, **broken.TOKENIZERS})
def test_a_broken_model_is_refused_as_base_in_one_sentence(
    case: str, whole: Path, tmp_path: Path
) -> None:
    build, words = {**broken.MODELS, **broken.TOKENIZERS}[case]
    folder = made(whole, tmp_path / "broken", build)
    sentence = refusal(lambda: dd.load(folder, device="cpu"), folder)
    assert re.search(words, sentence), sentence


@cases(broken.MODELS)
def test_a_broken_model_is_refused_in_one_sentence_where_it_is_opened_to_be_exported(
    case: str, whole: Path, tmp_path: Path
) -> None:
    """An export reads headers and config alone, before anything is loaded, so it meets what is
    broken first.
    """
    folder = made(whole, tmp_path / "broken", broken.MODELS[case][0])
    opened: list[object] = []
    refusal(lambda: (opened.append(open_checkpoint(folder)), dd.load(folder, device="cpu")), folder)
    if case in (
        "a leftover adapter config",
        "an adapter",
        "checkpoints alone",
        "git-lfs pointer",
        "rms_norm_eps 0",
    ):
        assert not opened
        assert re.search(broken.MODELS[case][1], refusal(lambda: open_checkpoint(folder), folder))


@pytest.mark.parametrize(
    "attempt", [dd.load, open_checkpoint, lambda name: load_tuned(tiny.lm("llama"), name)]
)
def test_a_name_that_no_file_can_have_is_refused_as_a_model(
    attempt: Callable[[str], Any], tmp_path: Path
) -> None:
    sentence = refusal(lambda: attempt(300 * "a"), tmp_path)
    assert "local folder" in sentence


@pytest.mark.parametrize(
    "case", ["compiled keys", "lacks a matrix", "a pickle", "checkpoints alone", "not a number"]
)
def test_a_broken_model_is_refused_as_tuned_too(
    case: str, llama: LM, whole: Path, tmp_path: Path
) -> None:
    build, words = broken.MODELS[case]
    folder = made(whole, tmp_path / "broken", build)
    assert re.search(words, refusal(lambda: load_tuned(llama, folder), folder))


@cases(broken.APART)
def test_a_tuned_tokenizer_that_acts_otherwise_is_refused(
    case: str, llama: LM, whole: Path, tmp_path: Path
) -> None:
    build, words = broken.APART[case]
    folder = made(whole, tmp_path / "broken", build)
    assert re.search(words, refusal(lambda: load_tuned(llama, folder), folder))


@cases(broken.ADAPTERS)
def test_a_broken_adapter_is_refused(case: str, llama: LM, adapter: Path, tmp_path: Path) -> None:
    build, words = broken.ADAPTERS[case]
    folder = made(adapter, tmp_path / "broken", build)
    sentence = refusal(lambda: load_tuned(llama, folder), folder)
    assert re.search(words, sentence), sentence


def test_an_adapter_is_read_without_a_warning(llama: LM, adapter: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_tuned(llama, adapter)


@cases(broken.GOOD)
def test_what_is_whole_loads(case: str, whole: Path, tmp_path: Path) -> None:
    folder = made(whole, tmp_path / "good", broken.GOOD[case])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm = dd.load(folder, device="cpu")
    assert torch.equal(
        tiny.logits(lm, tiny.random_ids(1, 5)), tiny.logits(dd.load(folder), tiny.random_ids(1, 5))
    )


def test_a_decoder_inside_a_model_of_two_modalities_is_exported(
    whole: Path, tmp_path: Path
) -> None:
    folder = made(whole, tmp_path / "base", broken.with_vision)
    gain = np.full((tiny.LAYERS, tiny.NEURONS), 1.5)
    edit = dd.Intervention("x", "scale", gain, 0 * gain, gain > 0)
    lm = dd.load(folder, device="cpu")
    done = export(folder, edit, tmp_path / "out")
    expected = tiny.logits(edit.fold(lm), tiny.random_ids(1, 5))
    torch.testing.assert_close(
        tiny.logits(dd.load(done.folder, device="cpu"), tiny.random_ids(1, 5)), expected
    )


@cases(tiny.ARCHITECTURES)
def test_every_architecture_loads_as_it_was_saved(case: str, tmp_path: Path) -> None:
    saved = broken.whole(tmp_path / "model", case)
    ids = tiny.random_ids(1, 5)
    assert torch.equal(
        tiny.logits(dd.load(saved, device="cpu"), ids), tiny.logits(tiny.lm(case), ids)
    )


def test_a_pickle_is_refused_before_anything_opens_it(whole: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "opened",))

    folder = made(whole, tmp_path / "broken", broken.without(broken.WEIGHTS))
    torch.save(Trap(), folder / "pytorch_model.bin")
    refusal(lambda: dd.load(folder, device="cpu"), folder)
    assert not (tmp_path / "opened").exists()


def test_a_model_equal_to_its_base_is_known(llama: LM, adapter: Path, whole: Path) -> None:
    assert same_weights(llama, load_tuned(llama, whole))
    assert not same_weights(llama, load_tuned(llama, adapter))


def test_a_diff_of_a_model_with_itself_says_so_everywhere(tmp_path: Path) -> None:
    """It is a sound check of a set-up, and must not be read as a tuning that did nothing."""
    file = write_study(tmp_path)
    flags = {"model": str(tmp_path / "model"), "tuned": str(tmp_path / "model")}
    Study(load_config(preset="diff", file=file, flags=flags), tmp_path / "run", stages=RUN).run()
    said = read_json(tmp_path / "run" / "run.json")["stages"]["neurons"]["equal"]
    assert "The tuned model is the base model" in said
    assert said in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for show in (show_neurons, show_rows):
        console = Console(record=True, width=300)
        show(tmp_path / "run", console)
        assert console.export_text().rstrip().endswith(said)


def test_a_prompt_that_begins_with_the_bos_has_one(named: LM) -> None:
    assert named.encode(["<bos>the cat", "the cat"]) == [named.encode(["the cat"])[0]] * 2
    decoder = Decoder(named, ["<bos>the cat"], max_new_tokens=2)
    assert decoder.encoded == named.encode(["the cat"])


def test_tokenizers_that_act_alike_are_one_pair(llama: LM) -> None:
    other = tiny.tokenizer()
    other.padding_side = "left"
    other.model_max_length = 7
    other.chat_template = "{{ messages }}"
    check_pair(llama, replace(llama, tokenizer=other))
    assert tokens.difference(tiny.tokenizer(), other) is None


def test_a_prompt_is_padded_by_a_token_the_model_has() -> None:
    bare = tiny.tokenizer()
    bare.add_special_tokens({"pad_token": "<filler>"})
    with pytest.raises(DialdownError, match=r"pad token .* 265 rows"):
        LM.of(tiny.model("llama"), bare)


@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_a_dispatched_model_is_refused(offload: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    places = {
        "model.embed_tokens": "cpu",
        "model.layers": offload,
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
    }
    model = accelerate.dispatch_model(
        tiny.model("llama"),
        {**places, "lm_head": "cpu"},
        main_device="cpu",
        offload_dir=tmp_path,
        force_hooks=True,
    )
    with pytest.raises(DialdownError, match=r"dispatched by accelerate.*without device_map"):
        LM.of(model, tiny.tokenizer())


def test_weights_that_are_nowhere_are_refused() -> None:
    with pytest.raises(DialdownError, match="not in memory as plain tensors"):
        MLPView.find(tiny.model("llama").to("meta"))
    assert MLPView.find(tiny.model("llama").to("meta"), skeleton=True).n_layers == tiny.LAYERS


def test_weights_of_a_class_of_their_own_are_refused() -> None:
    class Elsewhere(torch.Tensor):
        pass

    model = tiny.model("llama")
    down = model.model.layers[1].mlp.down_proj
    down.weight = nn.Parameter(down.weight.data.as_subclass(Elsewhere))
    with pytest.raises(DialdownError, match="plain tensors"):
        MLPView.find(model)


def test_a_model_dispatched_later_cannot_be_folded_into(llama: LM) -> None:
    lm = llama.twin()
    lm.model.model.layers[0]._hf_hook = object()
    everything = dd.Intervention(
        "x", "scale", *(torch.full((tiny.LAYERS, tiny.NEURONS), n).numpy() for n in (2.0, 0.0))
    )
    with pytest.raises(DialdownError, match="dispatched"):
        everything.fold(lm)
    with pytest.raises(DialdownError, match="dispatched"), everything.folded_into(lm):
        pass
