"""LoRA adapters as tuned models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from dialdown import DialdownError
from dialdown.models import LM, load_tuned
from helpers import tiny
from helpers.edits import IDS, make


def save_adapter(lm: LM, folder: Path, *targets: str, **options: Any) -> Any:
    """A LoRA adapter with random weights, as PEFT trains and saves it."""
    modules = [*targets] or ["down_proj", "q_proj"]
    config = LoraConfig(r=2, target_modules=modules, init_lora_weights=False, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = get_peft_model(lm.twin().model, config)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return adapted.eval()


def test_a_lora_adapter_is_a_tuned_model(llama: LM, tmp_path: Path) -> None:
    adapted = save_adapter(llama, tmp_path)
    before = llama.weights_fingerprint()
    tuned = load_tuned(llama, tmp_path)
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            tuned.model(ids).logits, adapted(ids).logits, atol=1e-5, rtol=1e-5
        )
    assert llama.weights_fingerprint() == before
    assert all(isinstance(layer.linear, nn.Linear) for layer in tuned.view.layers)
    assert tuned.name == str(tmp_path)


@pytest.mark.parametrize("kind", ["scale", "steer"])
def test_a_tuned_model_keeps_no_hook_of_what_acts_on_its_base(
    llama: LM, tmp_path: Path, kind: str
) -> None:
    save_adapter(llama, tmp_path)
    with make(llama, kind).applied(llama):
        tiny.logits(llama, IDS)
        with pytest.raises(DialdownError, match=r"outside of `applied`"):
            load_tuned(llama, tmp_path)


def test_an_adapter_of_another_model_is_one_sentence(llama: LM, tmp_path: Path) -> None:
    save_adapter(tiny.lm("llama", intermediate_size=32), tmp_path)
    with pytest.raises(DialdownError, match="does not fit"):
        load_tuned(llama, tmp_path)


@pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings:UserWarning")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("target", ["embedding", "lm_head"])
def test_an_adapter_on_tied_embeddings_is_no_model_when_merged(
    name: str, target: str, tmp_path: Path
) -> None:
    embedding = {"llama": "embed_tokens", "gpt2": "wte"}[name]
    module = embedding if target == "embedding" else target
    tied = tiny.lm(name, tie_word_embeddings=True)
    save_adapter(tied, tmp_path, module)
    with pytest.raises(DialdownError, match=rf"acts on .*{module}, whose weight .*tied"):
        load_tuned(tied, tmp_path)
    untied = tiny.lm(name, tie_word_embeddings=False)
    adapted = save_adapter(untied, tmp_path, module)
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            load_tuned(untied, tmp_path).model(ids).logits,
            adapted(ids).logits,
            atol=1e-4,
            rtol=1e-4,
        )


def test_an_adapter_that_trains_rows_of_tied_embeddings_is_merged(tmp_path: Path) -> None:
    tied = tiny.lm("llama", tie_word_embeddings=True)
    adapted = save_adapter(tied, tmp_path, "q_proj", trainable_token_indices=[5, 6])
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            load_tuned(tied, tmp_path).model(ids).logits, adapted(ids).logits, atol=1e-4, rtol=1e-4
        )
