"""Loading a model with its tokenizer, and what an `LM` says of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import dialdown as dd
from dialdown import DialdownError
from dialdown.models import LM, Decoder
from dialdown.models.lm import check_pair, tokens
from helpers import tiny


def test_load_reads_a_folder(tmp_path: Path) -> None:
    llama = tiny.lm("llama")
    llama.model.save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    loaded = dd.load(tmp_path, device="cpu")
    ids = tiny.random_ids(2, 9)
    assert torch.equal(tiny.logits(loaded, ids), tiny.logits(llama, ids))
    assert loaded.name == str(tmp_path)
    assert loaded.describe() | {"model": ""} == llama.describe() | {"model": ""}
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training
    assert dd.load(tmp_path, dtype="bfloat16", device="cpu").model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("given", "message"), [({}, "no config.json"), ({"dtype": "flaot32"}, "did you mean 'float32'")]
)
def test_load_refuses_what_is_no_model(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(DialdownError, match=message):
        dd.load(tmp_path, device="cpu", **given)


def test_load_names_a_model_that_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(DialdownError, match="could not be loaded"):
        dd.load(tmp_path, device="cpu")


@pytest.mark.parametrize("name", ["./nowhere", "runs/demo/tunedd", "/none/here"])
def test_what_can_be_no_hub_id_is_met_without_asking_a_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", None)
    with pytest.raises(DialdownError, match=f"'{name}' could not be loaded .there is no such fol"):
        dd.load(name, device="cpu")


def test_bos_is_what_the_tokenizer_puts_before_a_text(gpt2: LM) -> None:
    assert gpt2.bos == []
    assert replace(gpt2, tokenizer=tiny.tokenizer(bos=True)).bos == [1]


def test_eos_takes_all_ids_of_the_generation_config(
    gpt2: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpt2.eos == {2}
    monkeypatch.setattr(gpt2.model.generation_config, "eos_token_id", [5, 9])
    assert gpt2.eos == {5, 9}
    monkeypatch.setattr(gpt2.model.generation_config, "eos_token_id", None)
    assert gpt2.eos == {2}


def test_a_tokenizer_without_padding_pads_with_its_eos() -> None:
    bare = tiny.tokenizer()
    bare.pad_token = None
    assert LM.of(tiny.model("llama"), bare).tokenizer.pad_token_id == 2


def test_context_is_the_models(lm: LM) -> None:
    # BLOOM has no positions, hence no limit.
    assert lm.context == (1 << 30 if lm.name == "tiny-bloom" else tiny.CONTEXT)


def test_a_twin_has_weights_of_its_own(named: LM) -> None:
    twin = named.twin()
    ids = tiny.random_ids(1, 6)
    before = tiny.logits(named, ids)
    assert torch.equal(tiny.logits(twin, ids), before)
    for layer in twin.view.layers:
        assert twin.model.get_submodule(layer.path) is layer.linear
        layer.columns.mul_(2)
    assert not torch.equal(tiny.logits(twin, ids), before)
    assert torch.equal(tiny.logits(named, ids), before)
    tied = named.model.config.tie_word_embeddings
    assert (
        twin.model.get_output_embeddings().weight is twin.model.get_input_embeddings().weight
    ) == tied


def test_weights_fingerprint_changes_with_any_weight(llama: LM) -> None:
    twin = llama.twin()
    assert twin.weights_fingerprint() == llama.weights_fingerprint()
    twin.model.model.layers[2].self_attn.k_proj.weight.data[0, 0] += 1e-3
    assert twin.weights_fingerprint() != llama.weights_fingerprint()


def test_pairs_of_models_must_correspond(llama: LM) -> None:
    check_pair(llama, tiny.lm("llama", seed=1))
    with pytest.raises(
        DialdownError, match=f"n_neurons {tiny.NEURONS + 1} where tiny-llama has {tiny.NEURONS}"
    ):
        check_pair(llama, tiny.lm("llama", intermediate_size=tiny.NEURONS + 1))
    with pytest.raises(DialdownError, match="n_layers"):
        check_pair(llama, tiny.lm("llama", num_hidden_layers=2))
    other = tiny.tokenizer()
    other.add_tokens(["<extra>"])
    with pytest.raises(DialdownError, match="another tokenizer"):
        check_pair(llama, replace(llama, tokenizer=other))


def test_loading_by_transformers_alone_gives_the_same_model(tmp_path: Path) -> None:
    """`lm.model` is the plain transformers object."""
    gpt2 = tiny.lm("gpt2")
    gpt2.model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(gpt2.model)


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
