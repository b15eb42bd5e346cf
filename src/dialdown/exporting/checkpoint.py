"""A checkpoint on disk, read tensor by tensor: where its weights lie, and which of them an edit
changes.

No model is loaded here. The class of the model is built without weights (on torch's meta device) to
find the down projections, exactly as `models.MLPView` finds them in a loaded one, and the
safetensors headers say where their bytes lie. The format of a header is public and short: eight
bytes of length, JSON, then the data.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import AutoModelForCausalLM

from ..data.assets import fetch_model
from ..data.hub import reaching
from ..data.loading import (
    INDEX,
    WEIGHTS,
    check_folder,
    check_header,
    read_config,
    read_object,
    refuse_adapter,
    refuse_quantised,
    told,
    weight_files,
)
from ..data.model_files import CONFIG, COPIED, own_file
from ..errors import DialdownError
from ..models.lm import LM, MLPView
from ..progress import Progress

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
DOWNLOADED = (
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.safetensors",
    "LICENSE*",
    "NOTICE*",
    "README.md",
)
# The authors' own formats beside the transformers one, and folders of conversions.
NOT_DOWNLOADED = ["consolidated*", "*/*"]
CHUNK = 1 << 20


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint: what its header says, and where its bytes lie.

    Attributes:
        name: its name in the checkpoint.
        dtype: the safetensors code, for example `BF16`.
        shape: its shape.
        file: the safetensors file.
        start: the position of its first byte in the file.
        size: bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    size: int

    def read(self) -> Tensor:
        """The tensor, in memory of its own."""
        data = bytearray(self.size)
        with self.file.open("rb") as handle:
            handle.seek(self.start)
            handle.readinto(data)
        return torch.frombuffer(data, dtype=DTYPES[self.dtype]).reshape(self.shape)

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, a megabyte at a time."""
        with self.file.open("rb") as handle:
            handle.seek(self.start)
            left = self.size
            while left > 0 and (chunk := handle.read(min(left, CHUNK))):
                left -= len(chunk)
                yield chunk


@dataclass(frozen=True)
class Checkpoint:
    """A base model on disk.

    Attributes:
        folder: where it lies.
        name: what it is called in a delta: a hub id, `embedded:NAME`, or the last part of a local
            folder's path.
        revision: the commit a hub id was resolved to, else the revision asked for, or None.
        local: whether it was given as a folder, so that its name alone does not find it again.
        config: its config.json.
        tensors: its tensors by name, in the order of the files.
        metadata: the metadata of its first safetensors header.
        skeleton: the model without weights, wrapped so that its down projections are at hand.
        downs: for each layer the name of its down projection's weight in the checkpoint.
    """

    folder: Path
    name: str
    revision: str | None
    local: bool
    config: dict[str, Any]
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]
    skeleton: LM
    downs: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(stored.size for stored in self.tensors.values())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the down projections (of the first, where they differ)."""
        return DTYPES[self.tensors[self.downs[0]].dtype]

    def stored_name(self, parameter: str) -> str:
        """What a parameter of the model is called in the checkpoint, which may leave out the
        model's base prefix.

        Raises:
            DialdownError: the checkpoint has no such tensor.
        """
        return _stored_name(
            self.name, self.tensors, self.skeleton.model.base_model_prefix, parameter
        )

    @cached_property
    def weights(self) -> dict[str, str]:
        """The tensors that the model is made of, and what each is called without the model's base
        prefix.

        Tensors that the model ignores, which one copy stores and another does not, are left out;
        all are there where the model names some weight otherwise than the checkpoint.
        """
        stored = {name: self._bare(name) for name in self.tensors}
        if self._untied <= set(stored.values()):
            known = {self._bare(name) for name in self.skeleton.model.state_dict()}
            return {name: bare for name, bare in stored.items() if bare in known}
        return stored

    @cached_property
    def _untied(self) -> frozenset[str]:
        """The model's parameters, one name for each."""
        return frozenset(self._bare(name) for name, _ in self.skeleton.model.named_parameters())

    def _bare(self, name: str) -> str:
        return name.removeprefix(f"{self.skeleton.model.base_model_prefix}.")

    def digests(self) -> dict[str, Any]:
        """A fresh sha256 for each of the weights, to be fed its bytes as they stream by (see
        `base_sha256`).
        """
        return {name: hashlib.sha256() for name in self.weights}

    def base_sha256(self, digests: Mapping[str, Any]) -> str:
        """One sha256 over the names and bytes of all weights: the identity of the base an edit was
        made for.

        A copy in other files, one that stores its weights without the base prefix, or a tied weight
        under both names, is the same base; one in another dtype is not.
        """
        whole, found = (
            hashlib.sha256(),
            {name: digest.hexdigest() for name, digest in digests.items()},
        )
        once = {found[name] for name, bare in self.weights.items() if bare in self._untied}
        for name, bare in sorted(self.weights.items(), key=lambda item: item[1]):
            # A second name with other bytes is a weight of its own, whatever the config says of
            # tying.
            if bare in self._untied or found[name] not in once:
                tensor = self.tensors[name]
                whole.update(f"{bare} {tensor.dtype} {tensor.shape} {found[name]}\n".encode())
        return whole.hexdigest()

    def read_sha256(self) -> str:
        """`base_sha256`, reading the weights for it."""
        digests = self.digests()
        for name, digest in digests.items():
            for chunk in self.tensors[name].chunks():
                digest.update(chunk)
        return self.base_sha256(digests)


def open_checkpoint(
    source: str | os.PathLike[str], *, revision: str | None = None, progress: Progress | None = None
) -> Checkpoint:
    """Find the checkpoint of a model, and the down projections in it.

    Args:
        source: a local folder, `embedded:NAME`, or a hub id.
        revision: a hub branch, tag or commit.
        progress: called while an embedded model is downloaded and converted.

    Raises:
        DialdownError: it cannot be found, has no safetensors weights, is quantised, is damaged, or
            is of an architecture without a plain MLP (see `MLPView.find`).
    """
    source = os.fspath(source)
    folder, name, revision = locate(source, revision, patterns=DOWNLOADED, progress=progress)
    check_folder(folder)
    refuse_adapter(source, str(folder))
    config = read_object(own_file(folder, CONFIG))
    refuse_quantised(source, config)
    tensors, metadata = _read_headers(source, folder)
    skeleton = build_skeleton(folder, name)
    prefix = skeleton.model.base_model_prefix
    downs = tuple(
        _stored_name(name, tensors, prefix, f"{layer.path}.weight")
        for layer in skeleton.view.layers
    )
    for layer, down in zip(skeleton.view.layers, downs, strict=True):
        _check_matrix(source, tensors[down], tuple(layer.down.weight.shape))
    local = os.path.isdir(source)
    return Checkpoint(folder, name, revision, local, config, tensors, metadata, skeleton, downs)


def build_skeleton(folder: Path, name: str) -> LM:
    """The model of a folder's config.json on the meta device, with the view of its down projections
    and no tokenizer.

    Raises:
        DialdownError: transformers does not know the architecture, or `MLPView` does not.
    """
    classes: Any = AutoModelForCausalLM  # transformers leaves `from_config` untyped
    config = read_config(str(folder), name=name)
    say = (
        "The config of {} is not one of a causal LM that transformers can build ({}): pass a "
        "decoder-only causal LM."
    )
    with told(lambda reason: say.format(name, reason)), torch.device("meta"):
        model = classes.from_config(config)
        # transformers 5.0 ties none on this device, and the weights of a base, which identify it,
        # depend on it.
        model.tie_weights()
    return LM(model, None, MLPView.find(model, skeleton=True), name)


def locate(
    source: str | os.PathLike[str],
    revision: str | None = None,
    *,
    patterns: Sequence[str] = (CONFIG, *COPIED),
    progress: Progress | None = None,
) -> tuple[Path, str, str | None]:
    """The folder of a model, its name as others know it, and its revision.

    Args:
        source: a local folder, `embedded:NAME`, or a hub id.
        revision: a hub branch, tag or commit.
        patterns: the files that are needed of a hub id.
        progress: called while an embedded model is downloaded and converted.

    Returns:
        the folder; a hub id, `embedded:NAME` or the last part of a local folder's path; the commit
            of a hub id, or None.

    Raises:
        DialdownError: it is no folder here and cannot be fetched.
    """
    source = os.fspath(source)
    if source.startswith("embedded:"):
        return fetch_model(source.removeprefix("embedded:"), progress), source, None
    if os.path.isdir(source):
        return Path(source), Path(source).resolve().name, None
    try:
        with reaching(source):
            downloaded = snapshot_download(
                source,
                revision=revision,
                allow_patterns=[*patterns],
                ignore_patterns=NOT_DOWNLOADED,
            )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DialdownError(
            f"The model {source!r} is no folder here and could not be fetched from the hub "
            f"({reason}): "
            "pass a hub id that can be reached from here, a local folder, or embedded:smollm2-135m."
        ) from error
    # The hub's cache names a snapshot's folder after its commit, which says more than a branch.
    return Path(downloaded), source, Path(downloaded).name


def _check_matrix(source: str, stored: Stored, shape: tuple[int, ...]) -> None:
    if stored.dtype not in DTYPES:
        raise DialdownError(
            f"The tensor {stored.name} of {source} is stored as {stored.dtype}, a quantised "
            "format: "
            f"pass a checkpoint whose down projections are {', '.join(DTYPES)}."
        )
    if stored.shape != shape:
        raise DialdownError(
            f"The tensor {stored.name} of {source} has shape {stored.shape} where its config asks "
            f"for {shape}: "
            "pass a folder whose config and weights belong together."
        )


def _read_headers(source: str, folder: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """All tensors of a folder, in the order of its files, and the metadata of the first file."""
    if (folder / WEIGHTS).is_file():
        files = [WEIGHTS]
    elif (folder / INDEX).is_file():
        files = weight_files(own_file(folder, INDEX))
    else:
        raise DialdownError(
            f"{source} has no {WEIGHTS} and no {INDEX}, the only format that can be read without "
            "running code: "
            "load it with transformers, call model.save_pretrained(folder) on it, and pass that "
            "folder."
        )
    tensors: dict[str, Stored] = {}
    first: dict[str, str] = {}
    for file in files:
        entries, metadata = _read_header(own_file(folder, file))
        tensors.update(entries)
        first = first or metadata
    return tensors, first


def _read_header(file: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    # The library checks what a header must be; it does not say where the bytes lie.
    check_header(file)
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
    metadata = header.pop("__metadata__", {})
    entries = {}
    for name, entry in sorted(header.items(), key=lambda item: int(item[1]["data_offsets"][0])):
        start, end = entry["data_offsets"]
        entries[name] = Stored(
            name, entry["dtype"], tuple(entry["shape"]), file, 8 + length + start, end - start
        )
    return entries, metadata


def _stored_name(source: str, tensors: Mapping[str, Stored], prefix: str, parameter: str) -> str:
    bare = parameter.removeprefix(f"{prefix}.")
    candidates = dict.fromkeys([parameter, bare, f"{prefix}.{parameter}"])
    if known := [name for name in candidates if name in tensors]:
        return known[0]
    # Classes with more than one modality (Gemma-3) name the way to the decoder otherwise when they
    # are saved.
    parts = parameter.split(".")
    inside = ".".join(
        parts[next(place for place, part in enumerate(parts) if part.isdigit()) - 1 :]
    )
    alike = [name for name in tensors if name.endswith(f".{inside}")]
    if len(alike) == 1:
        return alike[0]
    if not alike:
        raise DialdownError(
            f"The checkpoint {source} has no tensor {parameter}, which its config asks for: fetch "
            "or save it again, config and weights of one model."
        )
    raise DialdownError(
        f"The checkpoint {source} has {len(alike)} tensors {inside} where the model reads "
        f"{parameter}, because layers share it or its names are of another class: "
        "untie the weights, or pass a folder that save_pretrained wrote of the causal LM alone."
    )
