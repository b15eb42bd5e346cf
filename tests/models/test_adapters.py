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


def save_adapter(lm: LM, folder: Path) -> Any:
    """A LoRA adapter with random weights, as PEFT trains and saves it."""
    config = LoraConfig(r=2, target_modules=["down_proj", "q_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = get_peft_model(lm.twin().model, config)
    adapted.save_pretrained(folder)
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
