"""Read a model whole or not at all: config, tokenizer and weights of a folder or a hub id, as
transformers objects.

transformers fills what a checkpoint lacks with random numbers, leaves out what it does not know,
and says both in a log that is easily missed. Here its report decides: a model that is not whole is
refused, and so is a file that only an error deep inside a library would tell of. Base models, tuned
ones, classifiers and encoders all come through here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer
from transformers.utils.peft_utils import find_adapter_config_file

from ..errors import DialdownError, memory_is_short, nearest, one_line
from .hub import reaching
from .local_paths import is_no_hub_id

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
FLOATS = ("F64", "F32", "F16", "BF16")
# Masks and frequencies that older classes stored beside the weights, and that a model makes for
# itself.
BUFFERS = re.compile(
    r"(^|\.)(masked_bias|causal_mask|inv_freq|position_ids|(attn|attention)\.bias)$"
)
NORM_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps")
SHOWN = 3  # keys of a loading report that a sentence names

# What a broken file makes Python, torch and the libraries under transformers raise; classes of
# theirs derive from these.
BROKEN = (
    ArithmeticError,
    AttributeError,
    HfHubHTTPError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
)


@contextmanager
def told(say: Callable[[str], str]) -> Iterator[None]:
    """Make of a broken file's error the sentence that `say` makes of it."""
    try:
        yield
    except Exception as error:
        # The Rust part of tokenizers raises `Exception` itself about a file that it cannot read.
        if not (type(error) is Exception or isinstance(error, BROKEN)) or memory_is_short(error):
            raise
        reason = one_line(error, 300)
        if isinstance(error, KeyError) and " " not in reason:
            reason = f"its config names {reason}, which transformers does not know"
        raise DialdownError(say(reason)) from error


def check_device(device: str) -> None:
    """Refuse a device that torch cannot use, or that has no float64 (DialdownError)."""
    try:
        kind = torch.device(device).type
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DialdownError(
            f"The device {device!r} cannot be used ({one_line(error, 120)}): pass device='cpu', or "
            "a GPU torch sees."
        ) from error
    if kind == "mps":
        raise DialdownError(
            "The device 'mps' has no float64, in which every mean is summed here: pass "
            "device='cpu'."
        )


def named_dtype(name: str) -> Any:
    """What `from_pretrained` takes for a dtype's name (DialdownError for an unknown one)."""
    known = ("float32", "bfloat16", "float16", "auto")
    if name not in known:
        raise DialdownError(f"Unknown dtype {name!r}: {nearest(name, known)}")
    return name if name == "auto" else getattr(torch, name)


def read_config(
    source: str, *, name: str, instead: str | None = None, revision: str | None = None
) -> Any:
    """The config of a folder or hub id, of a checkpoint whose weights are plain numbers."""
    whole = "pass a folder written by save_pretrained, its config.json as it was written"
    other = "pass a hub id that can be reached from here, a local folder, or embedded:smollm2-135m"
    say = _not_loaded(name, instead or (whole if os.path.isdir(source) else other))
    if is_no_hub_id(source) and not os.path.isdir(source):
        raise DialdownError(say("there is no such folder"))
    with told(say), reaching(name):
        config = AutoConfig.from_pretrained(source, revision=revision)
    settings = config.to_dict()
    refuse_quantised(name, settings)
    # Not every version of transformers checks it, and a norm of a silent position then divides by
    # 0.
    if zero := [
        key
        for key in NORM_EPSILONS
        if isinstance(settings.get(key), int | float) and settings[key] <= 0
    ]:
        raise DialdownError(say(f"'{zero[0]}' of its config.json is {settings[zero[0]]}"))
    return config


def _not_loaded(name: str, instead: str) -> Callable[[str], str]:
    """The sentence about a model that could not be loaded, of the reason."""
    return lambda reason: f"The model {name!r} could not be loaded ({reason}): {instead}."


def read_tokenizer(source: str, *, name: str, revision: str | None = None) -> Any:
    """The tokenizer of a folder or hub id."""
    say = (
        "The tokenizer of {!r} could not be loaded ({}): pass a model whose folder holds its "
        "tokenizer too, as tokenizer.save_pretrained(folder) writes it."
    )
    with told(lambda reason: say.format(name, reason)), reaching(name):
        return AutoTokenizer.from_pretrained(source, revision=revision)


def read_weights(classes: Any, source: str, *, name: str, instead: str, **options: Any) -> Any:
    """A model with every weight from its checkpoint, and every weight of the checkpoint in it.

    Args:
        classes: what of transformers loads it, such as `AutoModelForCausalLM`.
        source: a folder or a hub id.
        name: what the user called it.
        instead: what to pass where it is refused, the end of the sentence.
        options: of `from_pretrained`.
    """
    if os.path.isdir(source) and "gguf_file" not in options:
        weight_files(Path(source), name)
    with told(_not_loaded(name, instead)), reaching(name):
        # With sizes that differ it would end in an error that names none of them.
        model, report = classes.from_pretrained(
            source,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    if complaint := missing_from(report):
        raise DialdownError(
            f"{name!r} is not whole as a {type(model).__name__}: {complaint}: {instead}."
        )
    return model


def missing_from(report: Mapping[str, Collection[Any]]) -> str | None:
    """What transformers' loading report says against a model; None where it is whole."""
    problems = {
        "it lacks {}, in whose place random numbers would stand": report["missing_keys"],
        "it holds {} that the model has no place for": [
            key for key in report["unexpected_keys"] if not BUFFERS.search(key)
        ],
        "its config gives another size to {}": [
            mismatch[0] for mismatch in report["mismatched_keys"]
        ],
    }
    parts = [part.format(named_keys(keys)) for part, keys in problems.items() if keys]
    return "; ".join(parts) or None


def named_keys(keys: Collection[str]) -> str:
    """The first of some tensors' names, and how many there are."""
    shown = ", ".join(sorted(keys)[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")
    return f"{len(keys)} {'tensor' if len(keys) == 1 else 'tensors'} ({shown})"


def refuse_quantised(name: str, config: Mapping[str, Any]) -> None:
    """Refuse the config of a quantised checkpoint (DialdownError)."""
    nested = config.get("text_config") or {}
    method = config.get("quantization_config") or nested.get("quantization_config")
    if method:
        raise DialdownError(
            f"The checkpoint {name} is quantised ({method.get('quant_method', 'unnamed method')}), "
            "so a column of its down projections cannot be changed alone: pass the float32, "
            "bfloat16 or float16 checkpoint it was made from, and quantise the export again."
        )


def is_adapter(source: str, revision: str | None = None) -> bool:
    """Whether a folder or hub id holds an adapter of PEFT."""
    try:
        with reaching(source):
            return find_adapter_config_file(source, revision=revision) is not None
    except (OSError, ValueError):
        # Not a name that can be looked up; whoever loads it says what is wrong with it.
        return False


def refuse_adapter(name: str, source: str, revision: str | None = None) -> None:
    """Refuse an adapter as a base model (DialdownError)."""
    if is_adapter(source, revision):
        raise DialdownError(
            f"{name} is an adapter, which is not a model without its base: pass the base as the "
            f"model and {name} as the tuned one."
        )


def refuse_revision(name: str, revision: str | None) -> None:
    """Refuse a revision of what has none, a folder or an embedded model (DialdownError)."""
    embedded = name.startswith("embedded:")
    if revision is not None and (embedded or os.path.isdir(name)):
        kind = "an embedded model" if embedded else "a folder"
        raise DialdownError(
            f"revision={revision!r} has no effect on {name}, which is {kind} and has one version: "
            "leave it out, or pass a hub id."
        )


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds no model, or an adapter beside one (DialdownError)."""
    weights = any((folder / file).exists() for file in (WEIGHTS, INDEX, *PICKLES))
    if (folder / ADAPTER_CONFIG).exists():
        if weights:
            raise DialdownError(
                f"The folder {folder} holds both a whole model and an {ADAPTER_CONFIG}, so it "
                f"cannot be told which is meant: remove {ADAPTER_CONFIG} where the adapter is "
                "already merged into the weights, or pass a folder with the adapter alone."
            )
        return
    if (folder / "config.json").is_file():
        return
    names = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    if steps := [int(name) for name in names if name.isdigit()]:
        last = folder / f"checkpoint-{max(steps)}"
        raise DialdownError(
            f"The folder {folder} is a trainer's with checkpoints alone, so it holds no model "
            f"itself: pass one of them, of which {last} is the last."
        )
    raise DialdownError(
        f"The folder {folder} has no config.json, so it holds no transformers model: pass a folder "
        "written by save_pretrained."
    )


def weight_files(folder: Path, name: str) -> list[str]:
    """The safetensors files of a model's folder, before anything opens a pickle."""
    if (folder / WEIGHTS).exists():
        files = [WEIGHTS]
    elif (folder / INDEX).exists():
        files = _indexed(folder / INDEX)
    elif pickles := [file for file in PICKLES if (folder / file).exists()]:
        raise DialdownError(
            f"The weights of {name!r} are a pickle ({pickles[0]}), and reading one runs whatever "
            "code it holds: where you trust it, load it with transformers, call "
            "model.save_pretrained(folder), which writes safetensors, and pass that folder."
        )
    else:
        raise DialdownError(
            f"The folder {name!r} has no weights ({WEIGHTS} or {INDEX}): pass a folder written by "
            "model.save_pretrained."
        )
    for file in files:
        check_header(folder / file)
    return files


def _indexed(index: Path) -> list[str]:
    """The files that an index names (DialdownError where it names none)."""
    places = read_object(index).get("weight_map")
    if (
        not isinstance(places, dict)
        or not places
        or not all(isinstance(file, str) for file in places.values())
    ):
        raise DialdownError(
            f"{index} does not say which file holds which weight: fetch or save the checkpoint "
            "again."
        )
    return sorted(set(places.values()))


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a model's file (DialdownError where there is none)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DialdownError(
            f"{path} cannot be read ({one_line(error)}): fetch or save the model again."
        ) from error
    if not isinstance(content, dict):
        raise DialdownError(
            f"{path} holds {type(content).__name__}, not a JSON object: fetch or save the model "
            "again."
        )
    return content


def check_header(file: Path) -> None:
    """Refuse a file that is missing, cut, a pointer or of integers (DialdownError)."""
    try:
        with safe_open(file, framework="pt") as tensors:
            kinds = {key: tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise DialdownError(
            f"{file} is named by its index and is not there: fetch the checkpoint again."
        ) from error
    except (SafetensorError, OSError) as error:
        with file.open("rb") as opened:
            pointer = opened.read(20).startswith(b"version https://git-")
        raise DialdownError(
            f"{file} is the pointer that git-lfs leaves in place of a file, not the file: run git "
            "lfs pull, or fetch the checkpoint again."
            if pointer
            else (
                f"{file} is cut short or no safetensors file ({error}): fetch or save the "
                "checkpoint again."
            )
        ) from error
    if narrow := {
        key: kind for key, kind in kinds.items() if key.endswith(".weight") and kind not in FLOATS
    }:
        key, kind = min(narrow.items())
        raise DialdownError(
            f"The tensor {key} of {file} is stored as {kind}, a quantised format whose scale is "
            "not known here: pass the float32, bfloat16 or float16 checkpoint it was made from."
        )
