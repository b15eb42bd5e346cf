"""A model is loaded whole or not at all: what is refused, in one sentence, and what is not a
reason to refuse (METHOD §1).
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dialdown as dd
from dialdown import DialdownError
from dialdown.exporting.checkpoint import open_checkpoint
from dialdown.exporting.export import export
from dialdown.models import LM, load_tuned, same_weights
from helpers import broken_models as broken
from helpers import model_folders, odd_models, tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folders.whole(tmp_path_factory.mktemp("models") / "whole")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folders.adapter(tmp_path_factory.mktemp("adapters") / "whole")


def altered_copy(source: Path, folder: Path, build: model_folders.Build) -> Path:
    """A copy of a whole folder, altered by `build`."""
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
    folder = altered_copy(whole, tmp_path / "broken", build)
    sentence = refusal(lambda: dd.load(folder, device="cpu"), folder)
    assert re.search(words, sentence), sentence


# What the headers and the config reveal. An export meets the other faults when it loads the model.
TOLD_BY_HEADERS = (
    "a leftover adapter config",
    "an adapter",
    "checkpoints alone",
    "git-lfs pointer",
    "rms_norm_eps 0",
)


@cases(broken.MODELS)
def test_a_broken_model_is_refused_in_one_sentence_where_it_is_opened_to_be_exported(
    case: str, whole: Path, tmp_path: Path
) -> None:
    """An export reads headers and config alone, before anything is loaded, so it meets what is
    broken first.
    """
    folder = altered_copy(whole, tmp_path / "broken", broken.MODELS[case][0])
    if case in TOLD_BY_HEADERS:
        assert re.search(broken.MODELS[case][1], refusal(lambda: open_checkpoint(folder), folder))
        return
    said = "opened: it is met later"
    try:
        open_checkpoint(folder)
    except DialdownError as error:
        said = str(error)
    assert "\n" not in said
    assert ": " in said


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
    folder = altered_copy(whole, tmp_path / "broken", build)
    assert re.search(words, refusal(lambda: load_tuned(llama, folder), folder))


@cases(broken.APART)
def test_a_tuned_tokenizer_that_encodes_differently_is_refused(
    case: str, llama: LM, whole: Path, tmp_path: Path
) -> None:
    build, words = broken.APART[case]
    folder = altered_copy(whole, tmp_path / "broken", build)
    assert re.search(words, refusal(lambda: load_tuned(llama, folder), folder))


@cases(broken.ADAPTERS)
def test_a_broken_adapter_is_refused(case: str, llama: LM, adapter: Path, tmp_path: Path) -> None:
    build, words = broken.ADAPTERS[case]
    folder = altered_copy(adapter, tmp_path / "broken", build)
    sentence = refusal(lambda: load_tuned(llama, folder), folder)
    assert re.search(words, sentence), sentence


def test_an_adapter_is_read_without_a_warning(llama: LM, adapter: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_tuned(llama, adapter)


@cases(odd_models.GOOD)
def test_a_whole_model_loads(case: str, whole: Path, tmp_path: Path) -> None:
    folder = altered_copy(whole, tmp_path / "good", odd_models.GOOD[case])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm = dd.load(folder, device="cpu")
    assert torch.equal(
        tiny.logits(lm, tiny.random_ids(1, 5)), tiny.logits(dd.load(folder), tiny.random_ids(1, 5))
    )


def test_the_decoder_of_a_multimodal_model_is_exported(whole: Path, tmp_path: Path) -> None:
    folder = altered_copy(whole, tmp_path / "base", odd_models.with_vision)
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
    saved = model_folders.whole(tmp_path / "model", case)
    ids = tiny.random_ids(1, 5)
    assert torch.equal(
        tiny.logits(dd.load(saved, device="cpu"), ids), tiny.logits(tiny.lm(case), ids)
    )


def test_a_pickle_is_refused_before_anything_opens_it(whole: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "opened",))

    folder = altered_copy(whole, tmp_path / "broken", model_folders.without(model_folders.WEIGHTS))
    torch.save(Trap(), folder / "pytorch_model.bin")
    refusal(lambda: dd.load(folder, device="cpu"), folder)
    assert not (tmp_path / "opened").exists()


def test_a_model_equal_to_its_base_is_known(llama: LM, adapter: Path, whole: Path) -> None:
    assert same_weights(llama, load_tuned(llama, whole))
    assert not same_weights(llama, load_tuned(llama, adapter))
