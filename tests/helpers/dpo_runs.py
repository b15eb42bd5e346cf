"""Preference pairs, and the tiny models and tokenizer that DPO trains on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
)

from dialdown import LM, load
from dialdown.data import Pair
from dialdown.training import DPOSettings, TrainingLog

NOUNS = ("cat", "dog", "house", "tree", "river", "stone", "cloud", "road")
PAIRS = tuple(
    Pair(
        f"the {noun} in the {other}",
        f" is good and{' very' * (i % 3)} kind",
        " is bad" + " and cruel" * (i % 2 + 1),
    )
    for i, (noun, other) in enumerate(zip(NOUNS, reversed(NOUNS), strict=True))
)
QUICK = DPOSettings(
    learning_rate=1e-2,
    warmup_steps=1,
    batch_size=2,
    accumulation=2,
    epochs=3,
    eval_every=2,
    eval_pairs=2,
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Trained on these pairs, so that words merge, and without a pad token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    words = [text for pair in PAIRS for text in (pair.prompt, pair.chosen, pair.rejected)]
    core.train_from_iterator(
        words * 4,
        trainers.BpeTrainer(
            vocab_size=340,
            special_tokens=["<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


def of(model: Any, tokenizer: Any) -> LM:
    """What `train_dpo` takes."""
    return load(model, tokenizer=tokenizer)


def tiny(architecture: str) -> Any:
    """A model of that tokenizer, whose windows and caps are small enough to matter."""
    torch.manual_seed(7)
    sizes = {
        "vocab_size": 340,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    old = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    config = {
        "gpt2": lambda: GPT2Config(vocab_size=340, initializer_range=0.3, **old),
        "llama": lambda: LlamaConfig(**sizes),
        "mistral": lambda: MistralConfig(**sizes, sliding_window=4),
        "gemma2": lambda: Gemma2Config(**sizes, head_dim=8, final_logit_softcapping=3.0),
    }[architecture]()
    return AutoModelForCausalLM.from_config(config).eval()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


def same(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return state.keys() == other.keys() and all(
        torch.equal(state[name], other[name]) for name in state
    )


def story(log: TrainingLog) -> TrainingLog:
    """The log without what differs between two equal runs."""
    return replace(log, seconds=0.0)
