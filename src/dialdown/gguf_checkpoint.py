"""A GGUF model as a plain transformers folder, readable by transformers 4 and 5 alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .files import write_json
from .loading import read_weights


def convert_gguf(file: Path) -> None:
    """Write a GGUF model as a float32 transformers folder (weights, config, tokenizer) beside the file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = file.parent
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    instead = "pass another model, or a file that is whole"
    model = read_weights(
        AutoModelForCausalLM, str(folder), name=file.name, instead=instead, gguf_file=file.name, dtype=torch.float32
    )
    # transformers still calls the de-quantised model "quantized with gguf" and would refuse to save it.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _edit_json(folder / "config.json", _readable_by_transformers_4)
    _edit_json(folder / "tokenizer_config.json", _generic_tokenizer)


def _edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    write_json(path, content)


def _readable_by_transformers_4(config: dict[str, Any]) -> None:
    """Repeat the rotary base at the top level: transformers 4 looks there, and else takes a default."""
    config.pop("_model_name_or_path", None)
    rope = config["rope_parameters"]
    config["rope_theta"] = rope.get("full_attention", rope)["rope_theta"]
    if "sliding_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]


def _generic_tokenizer(config: dict[str, Any]) -> None:
    """Name the tokenizer class that transformers 4 and 5 both know."""
    if config["tokenizer_class"] == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for key in ("backend", "is_local", "local_files_only"):
        config.pop(key, None)
