"""Models as folders: saved as transformers saves them, and read back tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file

from dialdown.models import LM


def saved(lm: LM, folder: Path, **options: Any) -> Path:
    lm.twin().model.save_pretrained(folder, **options)  # saving writes to the config
    lm.tokenizer.save_pretrained(folder)
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def assert_same(folder: Path, lm: LM) -> None:
    """The folder's tensors are those the model would be saved as, bit for bit."""
    with TemporaryDirectory() as place:
        expected = stored(saved(lm, Path(place)))
    tensors = stored(folder)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name
