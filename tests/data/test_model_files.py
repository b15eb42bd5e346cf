"""The files of a model's folder: what a model written here holds for others, and what is taken from
a base.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dialdown import DialdownError
from dialdown.data.model_files import (
    config_for_all,
    copy_files,
    left_out,
    own_file,
    tokenizer_for_all,
    write_model,
)
from dialdown.exporting.export import export
from dialdown.models import LM
from helpers import tiny
from helpers.edits import make
from helpers.folders import saved


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.parametrize("mask", [0o022, 0o027])
@pytest.mark.parametrize("with_base", [True, False])
def test_a_model_written_here_is_one_that_transformers_4_reads(
    tmp_path: Path, mask: int, with_base: bool
) -> None:
    lm = tiny.lm("llama", rope_parameters={"rope_theta": 1e5, "rope_type": "default"})
    base = saved(lm, tmp_path / "base") if with_base else None
    if base is not None:
        (base / "LICENSE").write_text("the licence")
        (base / "chat_template.jinja").write_text("{{ messages }}")
    before = os.umask(mask)
    try:
        write_model(lm.model, lm.tokenizer, tmp_path / "out", base)
    finally:
        os.umask(before)
    out = tmp_path / "out"
    assert read(out / "config.json")["rope_theta"] == 1e5
    assert read(out / "config.json")["dtype"] == "float32"
    assert read(out / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o666 & ~mask}
    again = LM.of(AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out))
    ids = tiny.random_ids(2, 30)
    assert torch.equal(tiny.logits(again, ids), tiny.logits(lm, ids))
    assert again.tokenizer("The cat")["input_ids"] == lm.tokenizer("The cat")["input_ids"]
    if base is not None:
        for name in ("LICENSE", "chat_template.jinja", "tokenizer.json", "generation_config.json"):
            assert (out / name).read_bytes() == (base / name).read_bytes()


def test_a_float32_model_is_not_recorded_in_the_16_bits_of_its_base(tmp_path: Path) -> None:
    base = saved(tiny.lm("llama", dtype=torch.bfloat16), tmp_path / "base")
    config = read(base / "config.json")
    (base / "config.json").write_text(json.dumps({**config, "torch_dtype": config.pop("dtype")}))
    wide = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    write_model(wide, tiny.tokenizer(), tmp_path / "out", base)
    written = read(tmp_path / "out" / "config.json")
    assert (written["dtype"], written["torch_dtype"]) == ("float32", "float32")


NAMES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": (
        {"rope_theta": 5e5, "rope_type": "default"},
        {"rope_theta": 5e5, "rope_scaling": None},
    ),
    "scaled": (
        {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    "partial": (
        {"rope_theta": 5e5, "rope_type": "default", "partial_rotary_factor": 0.5},
        {"rope_theta": 5e5, "partial_rotary_factor": 0.5},
    ),
    "two bases": (
        {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}},
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_no_setting_of_the_rotary_embedding_is_under_its_newest_name_only(name: str) -> None:
    rope, expected = NAMES[name]
    for config in (
        config_for_all({"model_type": "x", "rope_parameters": rope}, {}),
        config_for_all({"text_config": {"rope_parameters": rope}}, {})["text_config"],
    ):
        assert {key: config.get(key) for key in expected} == expected
        assert config["rope_parameters"] == rope
    neox = config_for_all(
        {"model_type": "gpt_neox", "rope_parameters": {**NAMES["partial"][0]}}, {}
    )
    assert (neox["rotary_emb_base"], neox["rotary_pct"]) == (5e5, 0.5)


def test_what_the_base_says_under_an_older_name_is_kept_only_for_the_same_kind_of_model() -> None:
    saved_now = {
        "model_type": "x",
        "rope_parameters": None,
        "hidden_size": 4,
        "_name_or_path": "/home/me/x",
    }
    same = config_for_all(saved_now, {"model_type": "x", "hidden_size": 3, "rotary_dim": 2})
    assert same == {"model_type": "x", "rope_parameters": None, "hidden_size": 4, "rotary_dim": 2}
    assert "rotary_dim" not in config_for_all(saved_now, {"model_type": "y", "rotary_dim": 2})


def test_no_tokenizer_is_of_a_class_that_transformers_4_lacks() -> None:
    tokens = {
        "tokenizer_class": "TokenizersBackend",
        "backend": "tokenizers",
        "extra_special_tokens": ["<x>"],
    }
    expected = {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<x>"]}
    assert tokenizer_for_all(tokens) == expected
    assert tokenizer_for_all({"tokenizer_class": "GPT2Tokenizer"}) == {
        "tokenizer_class": "GPT2Tokenizer"
    }


def test_no_link_out_of_the_base_is_followed(llama: LM, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("not the model's")
    base = saved(llama, tmp_path / "base")
    (base / "notices").mkdir()
    (base / "notices" / "third-party").write_text("its own")
    (base / "NOTICE").symlink_to("notices/third-party")
    (base / "LICENSE").symlink_to("../secret")
    (base / "README.md").symlink_to(secret)
    (base / "onnx").mkdir()
    (base / "model.gguf").write_text("")
    done = export(base, make(llama, "scale"), tmp_path / "out", verify=False)
    assert "LICENSE" not in done.files
    assert (done.folder / "NOTICE").read_text() == "its own"
    card = (done.folder / "README.md").read_text()
    assert "not the model's" not in card
    assert "LICENSE (a link that leads out of the folder), model.gguf, notices/, onnx/." in card
    assert "could not be read for its licence" in card


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_base_whose_own_files_lie_elsewhere_is_refused(
    llama: LM, tmp_path: Path, name: str
) -> None:
    base = saved(llama, tmp_path / "base")
    (base / name).rename(tmp_path / name)
    (base / name).symlink_to(tmp_path / name)
    with pytest.raises(
        DialdownError, match=f"{name} leads to a file outside of .*put a copy of the file there"
    ):
        export(base, make(llama, "scale"), tmp_path / "out", verify=False)


def test_a_cache_of_the_hub_is_read_through_its_links(llama: LM, tmp_path: Path) -> None:
    repository = tmp_path / "models--someone--small"
    snapshot = saved(llama, repository / "snapshots" / "0a1b")
    (snapshot / "LICENSE").write_text("the licence")
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(repository / "blobs" / str(number))
        path.symlink_to(f"../../blobs/{number}")
    done = export(snapshot, make(llama, "scale"), tmp_path / "out", verify=False)
    assert (done.folder / "LICENSE").read_text() == "the licence"
    assert not (done.folder / "LICENSE").is_symlink()
    # The blobs of another model are not its own.
    (tmp_path / "models--other" / "blobs").mkdir(parents=True)
    (tmp_path / "models--other" / "blobs" / "0").write_text("another's")
    (snapshot / "LICENSE").unlink()
    (snapshot / "LICENSE").symlink_to("../../../models--other/blobs/0")
    (tmp_path / "copied").mkdir()
    copy_files(snapshot, tmp_path / "copied")
    assert not (tmp_path / "copied" / "LICENSE").exists()
    assert left_out(snapshot) == ("LICENSE (a link that leads out of the folder)",)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"a": "../model.safetensors"}, "outside of"),
        ({"a": "{elsewhere}/model.safetensors"}, "outside of"),
        ({"a": "missing.safetensors"}, "is not there"),
        ({"a": None}, "does not say which file"),
        ({}, "does not say which file"),
        (["model.safetensors"], "does not say which file"),
        (None, "does not say which file"),
    ],
)
def test_no_index_leads_out_of_its_folder(
    llama: LM, tmp_path: Path, weight_map: Any, words: str
) -> None:
    base = saved(llama, tmp_path / "base")
    (base / "model.safetensors").rename(tmp_path / "model.safetensors")
    text = json.dumps({"weight_map": weight_map}).replace("{elsewhere}", str(tmp_path))
    (base / "model.safetensors.index.json").write_text(text)
    with pytest.raises(DialdownError, match=words):
        export(base, make(llama, "scale"), tmp_path / "out", verify=False)


def test_a_base_reached_by_a_link_or_a_relative_path_is_the_same(
    llama: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = saved(llama, tmp_path / "base")
    (tmp_path / "link").symlink_to(base)
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / "link", Path("link"), Path("base"), Path("link/../base")):
        assert own_file(source, "config.json").is_file()
