"""A GGUF model as a plain transformers folder, readable by transformers 4 and 5 alike."""

from __future__ import annotations

from pathlib import Path

from .loading import read_weights
from .model_files import write_model


def convert_gguf(file: Path) -> None:
    """Write a GGUF model as a float32 transformers folder beside the file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = file.parent
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    instead = "pass another model, or a file that is whole"
    model = read_weights(
        AutoModelForCausalLM,
        str(folder),
        name=file.name,
        instead=instead,
        gguf_file=file.name,
        dtype=torch.float32,
    )
    # transformers still calls the de-quantised model "quantized with gguf" and would refuse to save
    # it.
    model.hf_quantizer = None
    del model.config.quantization_config
    write_model(model, tokenizer, folder)
