"""Preference pairs as token ids, split into training and validation: what DPO is trained on (METHOD
§8).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import DialdownError
from ..models.tokens import encode as token_ids
from .make_pairs import Pair

Example = dict[str, list[int]]
"""The ids of a pair under TRL's names: `prompt_ids`, `chosen_ids`, `rejected_ids`."""


def encode(model: Any, tokenizer: Any, pairs: Sequence[Pair], *, max_tokens: int) -> list[Example]:
    """The token ids of each pair, in the order of `pairs`: no end-of-text after a continuation.

    Raises:
        DialdownError: a prompt or continuation is empty, or both together are longer than
            `max_tokens` or the model's context.
    """
    examples = []
    for pair in pairs:
        (prompt,) = token_ids(tokenizer, [pair.prompt])
        chosen = continuation_ids(tokenizer, pair.prompt, pair.chosen)
        rejected = continuation_ids(tokenizer, pair.prompt, pair.rejected)
        examples.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    empty = [number for number, example in enumerate(examples) if not all(example.values())]
    if empty:
        raise DialdownError(
            f"{len(empty)} of {len(pairs)} preference pairs (first: number {empty[0]}) have an "
            "empty prompt "
            "or continuation, so there is nothing to prefer: leave them out."
        )
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or max_tokens
    limit = min(max_tokens, context)
    too_long = sum(_length(example) > limit for example in examples)
    if too_long:
        raise DialdownError(
            f"{too_long} of {len(pairs)} preference pairs are longer than {limit} tokens "
            "(max_tokens = "
            f"{max_tokens}, the model's context {context}), the longest having "
            f"{max(map(_length, examples))}: shorten the prompts, or raise max_tokens if it is the "
            "lower one."
        )
    return examples


def _length(example: Example) -> int:
    return len(example["prompt_ids"]) + max(
        len(example["chosen_ids"]), len(example["rejected_ids"])
    )


def continuation_ids(tokenizer: Any, prompt: str, text: str) -> list[int]:
    """The ids that `text` has after `prompt`, whose own ids stay as they are while decoding.

    Where a token would span the boundary ("dial" continued by "led"), the text is encoded after a
    line break, because a SentencePiece tokenizer would put a space before it alone.
    """
    for before in (prompt, "\n", ""):
        head, whole = token_ids(tokenizer, [before, before + text])
        if whole[: len(head)] == head:
            return list(whole[len(head) :])
    raise DialdownError(
        f"{type(tokenizer).__name__} ends every text with a special token, so no continuation can "
        "be cut out: "
        "load the tokenizer with add_eos_token=False."
    )


def split(
    pairs: Sequence[Pair], examples: list[Example], *, eval_pairs: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """Training and validation examples that share no prompt.

    Whole prompts are held out until `eval_pairs` pairs are, or a quarter of all where that is
    fewer.

    Raises:
        DialdownError: there are too few pairs, or too few prompts, for both.
    """
    wanted = min(eval_pairs, len(pairs) // 4)
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    random.Random(seed).shuffle(prompts)
    by_prompt: dict[str, list[Example]] = {prompt: [] for prompt in prompts}
    for pair, example in zip(pairs, examples, strict=True):
        by_prompt[pair.prompt].append(example)
    held_out: list[Example] = []
    while prompts and len(held_out) < wanted:
        held_out += by_prompt.pop(prompts.pop())
    train = [example for group in by_prompt.values() for example in group]
    if not train or not held_out:
        raise DialdownError(
            f"{len(pairs)} preference pairs of {len({pair.prompt for pair in pairs})} prompts "
            "cannot be "
            "split into training and validation: pass at least 4 pairs with different prompts."
        )
    return train, held_out


def padded_as_published(examples: Sequence[Example], *, pad: int) -> dict[str, Tensor]:
    """A batch as the authors lay it out: prompts padded on the left, continuations of both kinds on
    the right (METHOD §8).

    As with them, no position ids go with it, so that a model of learned positions counts the
    padding before a prompt too.

    Args:
        examples: B pairs.
        pad: the id that fills up.

    Returns:
        `input_ids`, `attention_mask` and `completion_mask`, (2B, longest prompt + longest
            continuation), chosen first.
    """
    longest = max(len(example["prompt_ids"]) for example in examples)
    longest_text = max(
        len(example[key]) for example in examples for key in ("chosen_ids", "rejected_ids")
    )
    columns: dict[str, list[list[int]]] = {
        "input_ids": [],
        "attention_mask": [],
        "completion_mask": [],
    }
    for key in ("chosen_ids", "rejected_ids"):
        for example in examples:
            prompt, text = example["prompt_ids"], example[key]
            left, right = longest - len(prompt), longest_text - len(text)
            columns["input_ids"].append([pad] * left + prompt + text + [pad] * right)
            columns["attention_mask"].append(
                [0] * left + [1] * (len(prompt) + len(text)) + [0] * right
            )
            columns["completion_mask"].append([0] * longest + [1] * len(text) + [0] * right)
    return {name: torch.tensor(rows) for name, rows in columns.items()}
