"""What plain TRL leaves after a training, in each of its ways to save, is a tuned model of the base
it was given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

import dialdown as dd
from dialdown import DialdownError
from dialdown.models import load_tuned, same_weights
from helpers import model_folders, tiny

PAIRS = [
    {"prompt": "the cat", "chosen": " sat", "rejected": " ran"},
    {"prompt": "a", "chosen": " dog", "rejected": " hat"},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folders.whole(tmp_path_factory.mktemp("trl") / "base")


def trained(base: Path, out: Path, peft_config: Any) -> DPOTrainer:
    """A trainer after two steps, as TRL's own scripts set it up."""
    lm = dd.load(base, device="cpu")
    settings = DPOConfig(
        output_dir=str(out),
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=2,
        learning_rate=0.1,
        use_cpu=True,
        report_to=[],
        bf16=False,
        disable_tqdm=True,
    )
    trainer = DPOTrainer(
        lm.model,
        args=settings,
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=tiny.tokenizer(),
        peft_config=peft_config,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("adapter", [False, True], ids=["whole", "LoRA"])
def test_every_way_of_saving_is_a_tuned_model(base: Path, tmp_path: Path, adapter: bool) -> None:
    config = (
        LoraConfig(r=2, target_modules=["down_proj", "q_proj"], task_type="CAUSAL_LM")
        if adapter
        else None
    )
    trainer = trained(base, tmp_path / "trainer", config)
    lm = dd.load(base, device="cpu")
    with pytest.raises(DialdownError, match=r"checkpoints alone.*checkpoint-2 is the last"):
        load_tuned(lm, tmp_path / "trainer")
    trainer.save_model(str(tmp_path / "trainer"))
    trainer.model.save_pretrained(tmp_path / "plain")
    if not adapter:
        tiny.tokenizer().save_pretrained(tmp_path / "plain")
    ways = [tmp_path / "trainer", tmp_path / "trainer" / "checkpoint-2", tmp_path / "plain"]
    ids = tiny.random_ids(1, 8)
    expected = trainer.model.eval()(ids).logits
    for folder in ways:
        tuned = load_tuned(lm, folder)
        torch.testing.assert_close(tiny.logits(tuned, ids), expected.detach(), atol=1e-4, rtol=1e-4)
        assert not same_weights(lm, tuned)
