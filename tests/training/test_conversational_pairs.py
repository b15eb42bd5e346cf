"""Pairs whose prompts are turns of a chat template, against TRL's own preparation of the same
conversation.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import dialdown as dd
from dialdown.training.dpo import encode
from dialdown.training.gains import train_gains
from dialdown.training.settings import GainSettings
from helpers import chat_templates

PAIRS = [dd.Pair("the cat sat", "and ate", "or was bad"), dd.Pair("  a cat?", "hé 🙂 it ate", "no")]


@pytest.mark.parametrize("name", chat_templates.TEMPLATES)
def test_pairs_have_the_ids_that_trl_gives_them(name: str, tmp_path: Path) -> None:
    """TRL ends a reply with all that the template has after it, which one that was cut after so
    many tokens must not be taught.
    """
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    chat = chat_templates.lm(name)
    messages = [
        {
            "prompt": [{"role": "user", "content": pair.prompt}],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        for pair in PAIRS
    ]
    trainer = DPOTrainer(
        chat_templates.model(),
        ref_model=chat_templates.model(),
        args=DPOConfig(str(tmp_path), use_cpu=True, report_to="none", bf16=False),
        train_dataset=Dataset.from_list(messages),
        processing_class=chat_templates.tokenizer(chat_templates.TEMPLATES[name]),
    )
    examples = encode(chat.model, chat.tokenizer, PAIRS, max_tokens=200, template="chat")
    end = chat.tokenizer.convert_tokens_to_ids(chat_templates.ENDS[name])
    for example, given in zip(examples, trainer.train_dataset, strict=True):
        assert example["prompt_ids"] == given["prompt_ids"]
        for side in ("chosen_ids", "rejected_ids"):
            assert example[side] == given[side][: given[side].index(end)]


def test_gains_are_trained_on_turns(tmp_path: Path) -> None:
    """Its KL on own text counts where the model wrote, behind what the template says."""
    chat = chat_templates.lm("chatml")
    settings = GainSettings(optimizer="rmsprop", eval_pairs=1, epochs=1, own_kl_weight=0.1)
    pairs = [dd.Pair(f"the cat {number}", "and ate", "or was bad") for number in range(8)]
    texts = dd.own_text(chat, texts=4, tokens=6)
    gains, log = train_gains(chat, pairs, settings, tmp_path / "gains", texts=texts)
    assert gains.record["base"]["template"] == "chat"
    assert log.kl_own[0] == pytest.approx(0, abs=1e-6)
    raw = chat_templates.lm("chatml", template="none")
    other, _ = train_gains(raw, pairs, settings, tmp_path / "raw", texts=texts)
    assert (gains.gain != other.gain).any()
