"""Folders of models, adapters and tokenizers that are not what they should be: how each is made,
and words of the sentence that refuses it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PromptTuningConfig, get_peft_model
from tokenizers import normalizers, processors
from transformers import PreTrainedTokenizerFast

from helpers import tiny
from helpers.model_folders import (
    ADAPTER,
    DOWN,
    POINTER,
    WEIGHTS,
    Build,
    Weights,
    adapter,
    config,
    cut,
    edit_json,
    emptied,
    extra,
    pickled,
    renamed,
    saved,
    sharded,
    weights,
    whole,
    without,
    written,
)


def lost_shard(folder: Path) -> None:
    sharded(folder)
    min(folder.glob("model-*.safetensors")).unlink()


def trainer_folder(folder: Path) -> None:
    """What a trainer leaves that was stopped: checkpoints, and nothing at the top."""
    for file in folder.iterdir():
        file.unlink()
    for step in (8, 12, 100):
        whole(folder / f"checkpoint-{step}")


def adapter_beside(folder: Path) -> None:
    """A whole model, and the config of an adapter that was merged into it."""
    (folder / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "base"}'
    )


def nan(key: str) -> Build:
    def change(tensors: Weights) -> Weights:
        tensors[key][0, 0] = torch.nan
        return tensors

    return weights(change)


# What is wrong -> (how to make it from a whole model, what the sentence says).
MODELS: dict[str, tuple[Build, str]] = {
    "compiled keys": (
        renamed(lambda key: f"_orig_mod.{key}"),
        r"lacks 30 tensors \(lm_head.*_orig_mod",
    ),
    "lacks a matrix": (
        weights(lambda tensors: {key: value for key, value in tensors.items() if key != DOWN}),
        rf"lacks 1 tensor \({DOWN}\).* random numbers",
    ),
    "holds an unknown matrix": (
        extra(v_head__weight=(1, 16)),
        r"holds 1 tensor \(v_head.weight\) .*no place",
    ),
    "unmerged adapter keys": (
        extra(model__layers__0__mlp__down_proj__lora_A__weight=(2, 24)),
        "no place",
    ),
    "fewer layers than weights": (config(num_hidden_layers=2), r"holds 9 tensors \(model.layers.2"),
    "more layers than weights": (config(num_hidden_layers=5), r"lacks 18 tensors \(model.layers.3"),
    "another hidden size": (config(hidden_size=32), "another size to 30 tensors"),
    "another MLP width": (config(intermediate_size=32), "another size to 9 tensors"),
    "another vocabulary": (config(vocab_size=300), r"another size to 2 tensors \(lm_head.weight"),
    "cut weights": (cut(WEIGHTS, -100), "cut short or no safetensors"),
    "cut header": (cut(WEIGHTS, 100), "cut short or no safetensors"),
    "empty weights": (written(WEIGHTS, b""), "cut short or no safetensors"),
    "git-lfs pointer": (written(WEIGHTS, POINTER), "git lfs pull"),
    "no weights": (without(WEIGHTS), "has no weights"),
    "a lost shard": (lost_shard, "named by its index and is not there"),
    "an empty index": (
        lambda folder: (without(WEIGHTS)(folder), written(f"{WEIGHTS}.index.json", "{}")(folder)),
        "does not say which file",
    ),
    "a damaged index": (
        lambda folder: (without(WEIGHTS)(folder), written(f"{WEIGHTS}.index.json", "{")(folder)),
        "index.json cannot be read",
    ),
    "a pickle": (pickled(WEIGHTS, "pytorch_model.bin"), "a pickle .*save_pretrained"),
    "integers without scale": (
        weights(lambda tensors: {key: value.to(torch.int8) for key, value in tensors.items()}),
        "stored as I8, a quantised",
    ),
    "8-bit floats": (
        weights(
            lambda tensors: {key: value.to(torch.float8_e4m3fn) for key, value in tensors.items()}
        ),
        "stored as F8_E4M3, a quantised",
    ),
    "not a number": (nan(DOWN), rf"weights of .* are not finite numbers, in 1 tensor \({DOWN}\)"),
    "all zero": (
        weights(lambda tensors: {key: torch.zeros_like(value) for key, value in tensors.items()}),
        "weights of .* are zero",
    ),
    "rms_norm_eps 0": (config(rms_norm_eps=0), "'rms_norm_eps'"),
    "rope without its factor": (config(rope_parameters={"rope_type": "linear"}), "factor"),
    "an unknown rope": (config(rope_parameters={"rope_type": "oval", "rope_theta": 1e4}), "'oval'"),
    "an unknown activation": (config(hidden_act="gelux"), "'gelux'"),
    "0 heads": (config(num_attention_heads=0), "could not be loaded"),
    "0 layers": (config(num_hidden_layers=0), "no place for"),
    "heads that do not divide": (
        config(num_attention_heads=3),
        "multiple of the number of attention heads|another size",
    ),
    "layers in words": (config(num_hidden_layers="three"), "could not be loaded"),
    "a negative vocabulary": (config(vocab_size=-1), "could not be loaded"),
    "GPTQ": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        r"quantised \(gptq\)",
    ),
    "AWQ": (config(quantization_config={"quant_method": "awq", "bits": 4}), r"quantised \(awq\)"),
    "bitsandbytes": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        r"quantised \(bitsandbytes\)",
    ),
    "an unnamed quantisation": (config(quantization_config={"bits": 4}), r"quantised \(unnamed"),
    "no model type": (config(model_type=None), "model_type"),
    "an unknown model type": (config(model_type="zzz"), "zzz"),
    "an encoder": (config(model_type="bert"), "not whole"),
    "an empty config": (written("config.json", ""), "not a valid JSON"),
    "a null config": (written("config.json", "null"), "could not be loaded"),
    "a list as config": (written("config.json", "[]"), "could not be loaded"),
    "no text as config": (written("config.json", b"\xff\xfe\x00"), "could not be loaded"),
    "no config": (without("config.json"), "no config.json"),
    "null generation settings": (written("generation_config.json", "null"), "could not be loaded"),
    "checkpoints alone": (trainer_folder, "checkpoints alone.*checkpoint-100 is the last"),
    "a leftover adapter config": (adapter_beside, "both a whole model and an adapter_config.json"),
    "an adapter": (emptied(adapter), "an adapter, which is not a model without its base"),
}


def appends_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    core = tokenizer.backend_tokenizer
    core.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 2)]
    )


def adds_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    core = tokenizer.backend_tokenizer
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )


def lowers_case(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def composes(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()


def strips(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Strip()


def without_ends(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.pad_token = tokenizer.eos_token = None


TOKENIZERS: dict[str, tuple[Build, str]] = {
    "none": (
        without("tokenizer.json", "tokenizer_config.json"),
        "tokenizer of .* (could not be loaded|no tokens)",
    ),
    "an empty file": (written("tokenizer.json", ""), "tokenizer of .* could not be loaded"),
    "null": (written("tokenizer.json", "null"), "tokenizer of .* could not be loaded"),
    "an empty object": (written("tokenizer.json", "{}"), "tokenizer of .* could not be loaded"),
    "null settings": (
        written("tokenizer_config.json", "null"),
        "tokenizer of .* could not be loaded",
    ),
    "appends end-of-text": (saved(appends_eos), "ends every text with '<eos>'"),
    "neither pad nor end-of-text": (saved(without_ends), "neither a pad nor an end-of-text token"),
    "a pad token beyond the embedding": (
        saved(lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "<filler>"})),
        "pad token .* has the id 265 and the model's embedding has 265 rows",
    ),
}

# Chat templates that prompts cannot be put in: what it is, the setting, words of the sentence.
CHAT_TEMPLATES: dict[str, tuple[str | None, str, str]] = {
    "none": (None, "chat", "The tokenizer of .* has no chat template"),
    "no lone turn of a user": (
        "{{ raise_exception('Begin with a system turn') }}",
        "auto",
        "chat template .* cannot be used .Begin with a system turn",
    ),
    "half of one": ("{% if messages %}", "chat", "chat template .* cannot be used"),
    "no context left": (
        "a word and another " * 5 + "{{ messages[0].content }}",
        "chat",
        "of them the chat template's.*exceed the context",
    ),
}

# Tokenizers whose vocabulary is the base's and which make other ids of a text: refused for a tuned
# model alone.
APART: dict[str, tuple[Build, str]] = {
    "adds BOS": (saved(adds_bos), "another tokenizer .*other ids for .*<bos> T h"),
    "lower-cases": (saved(lowers_case), "another tokenizer .*other ids for"),
    "composes accents": (saved(composes), "another tokenizer .*other ids for 'naïve"),
    "strips spaces": (saved(strips), "another tokenizer .*other ids for ' two"),
    "more tokens": (
        saved(lambda tokenizer: tokenizer.add_tokens(["<extra>"])),
        r"1 more tokens \(such as '<extra>'\).*resize_token_embeddings",
    ),
}


def prompt_tuning(folder: Path) -> None:
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(tiny.model("llama"), settings).save_pretrained(folder)


def under_language_model(key: str) -> str:
    return key.replace("model.layers", "model.language_model.layers")


# From a whole adapter of the base.
ADAPTERS: dict[str, tuple[Build, str]] = {
    "keys that match nothing": (
        renamed(under_language_model, ADAPTER),
        r"12 tensors \(.*match nothing",
    ),
    "no tensors": (weights(lambda tensors: {}, ADAPTER), "are not in the adapter's file"),
    "half of its tensors": (
        weights(
            lambda tensors: {key: value for key, value in tensors.items() if "layers.1" in key},
            ADAPTER,
        ),
        "8 tensors .* are not in the adapter's file",
    ),
    "never trained": (emptied(lambda folder: adapter(folder, init=True)), "changes no weight of"),
    "of a wider model": (
        emptied(lambda folder: adapter(folder, intermediate_size=32)),
        "does not fit",
    ),
    "of another architecture": (
        edit_json("adapter_config.json", target_modules=["c_proj"]),
        "does not fit",
    ),
    "prompt tuning": (emptied(prompt_tuning), "PROMPT_TUNING.*LoRA adapter"),
    "no kind": (edit_json("adapter_config.json", peft_type=None), "cannot be read .*peft_type"),
    "an unknown kind": (edit_json("adapter_config.json", peft_type="LORAX"), "cannot be read"),
    "a null config": (written("adapter_config.json", "null"), "cannot be read"),
    "an empty config": (written("adapter_config.json", ""), "cannot be read"),
    "cut": (cut(ADAPTER, -40), "cut short"),
    "empty": (written(ADAPTER, b""), "cut short"),
    "git-lfs pointer": (written(ADAPTER, POINTER), "git lfs pull"),
    "no weights": (without(ADAPTER), "no adapter_model.safetensors"),
    "a pickle": (pickled(ADAPTER, "adapter_model.bin"), "a pickle .*save_pretrained"),
    "not a number": (
        weights(
            lambda tensors: {key: value * torch.nan for key, value in tensors.items()}, ADAPTER
        ),
        "not finite",
    ),
    "another tokenizer": (saved(lowers_case), "another tokenizer"),
}
