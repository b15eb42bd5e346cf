"""Folders of models and adapters, and what changes them.

Each `Build` takes a folder that holds a whole tiny Llama (`whole`) or a whole LoRA adapter of it
(`adapter`) and changes its files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from helpers import tiny

Build = Callable[[Path], object]
Weights = dict[str, torch.Tensor]

WEIGHTS = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
DOWN = "model.layers.1.mlp.down_proj.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 538090408\n"


def whole(folder: Path, name: str = "llama", **options: Any) -> Path:
    """A model and its tokenizer as save_pretrained writes them."""
    tiny.model(name, **options).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def adapter(folder: Path, name: str = "llama", *, init: bool = False, **options: Any) -> Path:
    """A LoRA adapter as PEFT saves it, of the same model; with `init` one that was never trained,
    whose change is zero.
    """
    config = LoraConfig(r=2, target_modules=["down_proj", "q_proj"], init_lora_weights=init)
    get_peft_model(tiny.model(name, **options), config).save_pretrained(folder)
    return folder


def edit_json(file: str, **changes: Any) -> Build:
    """Set keys of a JSON file; None removes one."""

    def build(folder: Path) -> None:
        content = {**json.loads((folder / file).read_text(encoding="utf-8")), **changes}
        kept = {key: value for key, value in content.items() if value is not None}
        (folder / file).write_text(json.dumps(kept), encoding="utf-8")

    return build


def config(**changes: Any) -> Build:
    return edit_json("config.json", **changes)


def written(file: str, content: str | bytes) -> Build:
    """Put other content in a file's place."""

    def build(folder: Path) -> None:
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return build


def cut(file: str, size: int) -> Build:
    """Keep the first bytes of a file (all but the last, where negative)."""
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:size])


def without(*files: str) -> Build:
    """Remove files."""

    def build(folder: Path) -> None:
        for file in files:
            (folder / file).unlink()

    return build


def weights(change: Callable[[Weights], Weights], file: str = WEIGHTS) -> Build:
    """Store what `change` makes of the tensors."""

    def build(folder: Path) -> None:
        tensors = {
            key: value.contiguous() for key, value in change(load_file(folder / file)).items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})

    return build


def renamed(change: Callable[[str], str], file: str = WEIGHTS) -> Build:
    return weights(lambda tensors: {change(key): value for key, value in tensors.items()}, file)


def extra(**shapes: tuple[int, ...]) -> Build:
    """Store more tensors, with `__` in a name for a dot."""
    more = {key.replace("__", "."): torch.ones(shape) for key, shape in shapes.items()}
    return weights(lambda tensors: {**tensors, **more})


def pickled(file: str, pickle: str) -> Build:
    """The same weights as torch pickles them."""

    def build(folder: Path) -> None:
        torch.save(load_file(folder / file), folder / pickle)
        (folder / file).unlink()

    return build


def sharded(folder: Path) -> None:
    """Weights in two files and an index."""
    tiny.model("llama").save_pretrained(folder, max_shard_size="8KB")
    (folder / WEIGHTS).unlink(missing_ok=True)


def emptied(build: Build) -> Build:
    """Build in an empty folder."""

    def build_there(folder: Path) -> None:
        for file in folder.iterdir():
            file.unlink()
        build(folder)

    return build_there


def saved(change: Callable[[PreTrainedTokenizerFast], object]) -> Build:
    """Save the tiny tokenizer after a change."""

    def build(folder: Path) -> None:
        tokenizer = tiny.tokenizer()
        change(tokenizer)
        tokenizer.save_pretrained(folder)

    return build
