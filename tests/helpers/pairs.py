"""Preference pairs and texts of the tiny models, and what a text is worth to one."""

from __future__ import annotations

import numpy as np
import torch

from dialdown.data import Pair

PAIRS = tuple(
    Pair(f"{noun} in the", chosen, rejected)
    for noun, chosen, rejected in zip(
        ("cat", "dog", "house", "tree", "river", "stone"),
        (" good", " kind and good", " soft", " warm", " calm", " neat"),
        (" bad", " cruel", " vile and bad", " foul", " grim", " mean"),
        strict=True,
    )
)
# Six, so that the second step takes the last two and then the first again.
TEXTS = np.random.default_rng(4).integers(1, 40, size=(6, 12)).tolist()


def log_probability(
    model: torch.nn.Module, tokenizer: object, pair: Pair, text: str
) -> torch.Tensor:
    """Of a continuation after its prompt, a token at a time."""
    prompt, whole = (tokenizer(t)[("input_ids")] for t in (pair.prompt, pair.prompt + text))  # type: ignore[operator]
    logits = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(logits[at - 1, whole[at]] for at in range(len(prompt), len(whole)))  # type: ignore[return-value]
