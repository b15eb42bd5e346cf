"""Layouts of model folders that are not as transformers writes them today, and must load."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from helpers import tiny
from helpers.model_folders import (
    DOWN,
    Build,
    emptied,
    extra,
    renamed,
    saved,
    sharded,
    weights,
    whole,
)


def old_buffers(folder: Path) -> None:
    """Rotary frequencies in each layer, as checkpoints before transformers 4.40 have them."""
    rotary = {
        f"model__layers__{layer}__self_attn__rotary_emb__inv_freq": (4,)
        for layer in range(tiny.LAYERS)
    }
    extra(**rotary)(folder)


def old_gpt2(folder: Path) -> None:
    """Causal masks as buffers, keys without the prefix of the head's class, and no second copy of
    the embedding.
    """
    emptied(lambda empty: whole(empty, "gpt2"))(folder)
    renamed(lambda key: key.removeprefix("transformer."))(folder)
    masks = {
        f"h__{layer}__attn__bias": (1, 1, tiny.CONTEXT, tiny.CONTEXT)
        for layer in range(tiny.LAYERS)
    }
    extra(**masks, **{f"h__{layer}__attn__masked_bias": () for layer in range(tiny.LAYERS)})(folder)


def old_masks(name: str, attention: str, *buffers: str) -> Build:
    """What other classes of that time stored in each layer."""

    def build(folder: Path) -> None:
        emptied(lambda empty: whole(empty, name))(folder)
        layers = [f"transformer__h__{layer}__{attention}__" for layer in range(tiny.LAYERS)]
        extra(**{f"{layer}{buffer}": (1, 1, 8, 8) for layer in layers for buffer in buffers})(
            folder
        )

    return build


def old_neox(folder: Path) -> None:
    emptied(lambda empty: whole(empty, "gpt_neox"))(folder)
    layers = [f"gpt_neox__layers__{layer}__attention__" for layer in range(tiny.LAYERS)]
    extra(
        **{f"{layer}bias": (1, 1, 8, 8) for layer in layers},
        **{f"{layer}masked_bias": () for layer in layers},
        **{f"{layer}rotary_emb__inv_freq": (4,) for layer in layers},
    )(folder)


def tied(folder: Path) -> None:
    emptied(lambda empty: whole(empty, tie_word_embeddings=True))(folder)


def tied_twice(folder: Path) -> None:
    """Both names of one tied matrix in the file."""
    tied(folder)
    weights(
        lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    )(folder)


def no_decoder_prefix(folder: Path) -> None:
    renamed(lambda key: key.removeprefix("model."))(folder)


def with_vision(folder: Path) -> None:
    """A class of two modalities, whose saved names of the decoder's weights are not its own."""
    settings = {**tiny.ARCHITECTURES["gemma3"][1], "vocab_size": len(tiny.VOCABULARY)}
    eyes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = Gemma3Config(
        text_config={**settings, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={**eyes, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        boi_token_index=3,
        eoi_token_index=4,
        image_token_index=5,
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)


def one_zero_layer(folder: Path) -> None:
    """A layer that writes nothing, as models that were made deeper have them."""
    weights(lambda tensors: {**tensors, DOWN: torch.zeros_like(tensors[DOWN])})(folder)


GOOD: dict[str, Build] = {
    "as it is": lambda folder: None,
    "sharded": sharded,
    "old rotary buffers": old_buffers,
    "old GPT-2": old_gpt2,
    "old GPT-NeoX": old_neox,
    "old GPT-J": old_masks("gptj", "attn", "bias", "masked_bias"),
    "old GPT-Neo": old_masks("gpt_neo", "attn__attention", "bias", "masked_bias"),
    "old CodeGen": old_masks("codegen", "attn", "causal_mask"),
    "tied": tied,
    "tied, both names stored": tied_twice,
    "keys without the prefix": no_decoder_prefix,
    "text and images": with_vision,
    "a layer of zeros": one_zero_layer,
    "half precision": weights(
        lambda tensors: {key: value.bfloat16() for key, value in tensors.items()}
    ),
    "a pickle beside": lambda folder: torch.save({}, folder / "pytorch_model.bin"),
    "a trainer's checkpoints beside": lambda folder: whole(folder / "checkpoint-4"),
    "pad beside end-of-text": saved(lambda tokenizer: setattr(tokenizer, "pad_token", "<eos>")),
    "no pad": saved(lambda tokenizer: setattr(tokenizer, "pad_token", None)),
}
