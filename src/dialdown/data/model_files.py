"""The files of a model's folder: what is copied from a base, and a model in memory written as one
that others can read.

    copy_files(base, folder)                      # an export: beside the weights
    write_model(model, tokenizer, folder, base)   # a model trained or converted here: `tuned/`

Both take tokenizer, generation config, chat template and licence from the base, byte for byte, and
follow no link out of the base's folder. What is written is for transformers 4 and 5 alike.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DialdownError
from ..files import read_json, write_json

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
# What a folder of transformers consists of beside weights and config.
COPIED = (
    *("generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "*.model"),
    *("vocab.json", "vocab.txt", "merges.txt", "chat_template*", "*.jinja"),
    *("LICENSE*", "NOTICE*"),
)
# What a folder has besides, which an export writes anew: its weights, their index and its card.
WRITTEN = (CONFIG, "README.md", "*.safetensors", "*.safetensors.index.json", "dialdown")
# The tokenizer class that transformers 4 and 5 both have, for those that only transformers 5 has.
GENERIC_TOKENIZER = "PreTrainedTokenizerFast"
# Where transformers 4 has another name for a setting of the rotary embedding.
OLDER_NAMES = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}


def is_own(path: Path, folder: Path) -> bool:
    """Whether a path of a model's folder leads to a file of that model, links followed.

    The hub's cache keeps a model's files as links to its blobs, which are the model's own.
    """
    folder, target = folder.resolve(), path.resolve()
    cached = folder.parent.name == "snapshots" and target.is_relative_to(
        folder.parent.parent / "blobs"
    )
    return cached or target.is_relative_to(folder)


def own_file(folder: Path, name: str) -> Path:
    """A file that a model cannot do without, by its name in the model's folder."""
    path = folder / name
    if not is_own(path, folder):
        raise DialdownError(
            f"{path} leads to a file outside of {folder}, which is not part of the model: put a "
            "copy of the file there."
        )
    return path


def copy_files(base: Path, folder: Path) -> None:
    """Copy tokenizer, generation config, chat template and licence of a base, nothing else."""
    for path in sorted(_copied(base)):
        if is_own(path, base):
            shutil.copyfile(path, folder / path.name)


def _copied(base: Path) -> set[Path]:
    return {path for pattern in COPIED for path in base.glob(pattern) if path.is_file()}


def left_out(base: Path) -> tuple[str, ...]:
    """What `copy_files` leaves out of a base's folder by name, links with the reason."""
    copied, written = _copied(base), {path for pattern in WRITTEN for path in base.glob(pattern)}
    names = []
    for path in sorted(base.iterdir()):
        if path in copied and not is_own(path, base):
            names.append(f"{path.name} (a link that leads out of the folder)")
        elif path not in copied | written and not path.name.startswith("."):
            names.append(f"{path.name}/" if path.is_dir() else path.name)
    return tuple(names)


def write_model(model: Any, tokenizer: Any, folder: Path, base: Path | None = None) -> None:
    """Write a transformers model and its tokenizer into a folder, for transformers 4 and 5.

    The weights keep their dtype, and the config says which it is. Files have the mode that the
    umask gives.

    Args:
        model: the model.
        tokenizer: its tokenizer, saved where no base is given.
        folder: where to.
        base: the folder of the model it was made from, whose files are copied (see `copy_files`).
    """
    model.save_pretrained(folder)
    if base is None:
        tokenizer.save_pretrained(folder)
    else:
        copy_files(base, folder)
    before = {} if base is None else read_json(own_file(base, CONFIG))
    write_json(folder / CONFIG, config_for_all(read_json(folder / CONFIG), before))
    if (folder / TOKENIZER_CONFIG).is_file():
        write_json(
            folder / TOKENIZER_CONFIG, tokenizer_for_all(read_json(folder / TOKENIZER_CONFIG))
        )
    # The safetensors library makes files that nobody else may read.
    mode = (folder / CONFIG).stat().st_mode
    for weights in folder.glob("*.safetensors"):
        weights.chmod(mode)


def config_for_all(saved: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """A config that transformers 5 saved, with what transformers 4 looks for.

    Args:
        saved: what transformers 5 wrote.
        before: the config of the base; its settings under older names are kept, where it is one of
            the same kind.
    """
    config = dict(saved)
    if before.get("model_type") == saved.get("model_type"):
        config = {**before, **saved}
    config.pop("_name_or_path", None)
    if "torch_dtype" in config and "dtype" in saved:
        config["torch_dtype"] = saved["dtype"]
    if isinstance(saved.get("text_config"), dict):
        config["text_config"] = config_for_all(
            saved["text_config"], before.get("text_config") or {}
        )
    rope = config.get("rope_parameters") or {}
    if "sliding_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    rope = rope.get("full_attention", rope)
    older = OLDER_NAMES.get(str(config.get("model_type")), {})
    config |= {
        older.get(name, name): rope[name]
        for name in ("rope_theta", "partial_rotary_factor")
        if name in rope
    }
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = {
            name: value for name, value in rope.items() if name != "rope_theta"
        }
    return config


def tokenizer_for_all(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer's config with a class and names that transformers 4 has."""
    config = {
        key: value
        for key, value in saved.items()
        if key not in ("backend", "is_local", "local_files_only")
    }
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = GENERIC_TOKENIZER
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    return config
