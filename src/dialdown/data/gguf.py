"""A GGUF model as a plain transformers folder, readable by transformers 4 and 5 alike."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import DialdownError
from .loading import read_weights
from .model_files import write_model

# A word as vocabularies write it, with what stands for the space before it.
WORD = re.compile("[▁Ġ][a-z]{4,}")
SAMPLE = 200


def convert_gguf(file: Path) -> None:
    """Write a GGUF model as a float32 transformers folder beside the file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = file.parent
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    check_words(tokenizer, file.name)
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


def check_words(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer that takes words of its own vocabulary apart, as transformers 5.17 makes
    of Gemma's: every number of a model that reads so would be wrong (DialdownError).
    """
    from transformers import __version__

    words = sorted(word for word in tokenizer.get_vocab() if WORD.fullmatch(word))
    words = words[:: max(1, len(words) // SAMPLE)]

    def whole(text: str) -> bool:
        return len(tokenizer.encode(text, add_special_tokens=False)) == 1

    # Some put the space before a first word themselves.
    split = [word[1:] for word in words if not (whole(f" {word[1:]}") or whole(word[1:]))]
    if 2 * len(split) > len(words):
        raise DialdownError(
            f"transformers {__version__} makes a tokenizer of {name} that takes words of its own "
            f"vocabulary apart ({split[0]!r} and {len(split) - 1} more of {len(words)}), so "
            "that the model could not read them: install a newer one (pip install -U transformers; "
            "5.24 reads Gemma 3)."
        )
