"""A base model on disk: its config, where the bytes of each tensor lie, and the identity of its
weights.

No model is loaded here. The class of the model is built without weights (on torch's meta device) to
find the down projections, exactly as `models.MLPView` finds them in a loaded one. The header of a
safetensors file says where its bytes lie: eight bytes of length, JSON, then the data.
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

from ..data.assets import embedded_models, fetch_model
from ..data.hub import reaching
from ..data.loading import (
    check_folder,
    read_config,
    read_object,
    refuse_adapter,
    refuse_quantised,
    refuse_revision,
    told,
    weight_files,
)
from ..data.local_paths import RUNS, is_no_hub_id
from ..data.model_files import CONFIG, COPIED, own_file
from ..errors import DialdownError, nearest, one_line
from ..models.lm import LM
from ..models.mlp import MLPView
from ..models.projection import Projection

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
DOWNLOADED = (*COPIED, "*.json", "*.safetensors", "README.md")
# The authors' own formats beside the transformers one, and folders of conversions.
NOT_DOWNLOADED = ["consolidated*", "*/*"]
CHUNK = 1 << 20


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint: the dtype and shape of its header (`BF16`), its safetensors file,
    and where its bytes lie there: the position of the first, and how many.
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

    def sha256(self) -> str:
        """Of its bytes, a megabyte at a time."""
        digest, left = hashlib.sha256(), self.size
        with self.file.open("rb") as handle:
            handle.seek(self.start)
            while chunk := handle.read(min(left, CHUNK)):
                digest.update(chunk)
                left -= len(chunk)
        return digest.hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """A base model on disk.

    Attributes:
        name: what it is called in a delta: a hub id, `embedded:NAME`, or the last part of a local
            folder's path.
        revision: the commit a hub id was resolved to, or None.
        local: whether it was given as a folder, so that its name alone does not find it again.
        config: its config.json.
        skeleton: the model without weights, wrapped so that its down projections are at hand.
    """

    folder: Path
    name: str
    revision: str | None
    local: bool
    config: dict[str, Any]
    tensors: Mapping[str, Stored]
    skeleton: LM

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(stored.size for stored in self.tensors.values())

    @property
    def downs(self) -> list[Stored]:
        """The weight of each layer's down projection."""
        return [self.weight(layer) for layer in self.skeleton.view.layers]

    def weight(self, layer: Projection) -> Stored:
        """The weight of a linear layer of the model."""
        stored = self.tensors[self.stored_name(f"{layer.path}.weight")]
        if (shape := tuple(layer.linear.weight.shape)) != stored.shape:
            raise DialdownError(
                f"The tensor {stored.name} of {self.name} has shape {stored.shape} where its "
                f"config asks for {shape}: pass a folder whose config and weights belong together."
            )
        return stored

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the down projections (of the first, where they differ)."""
        return DTYPES[self.downs[0].dtype]

    def stored_name(self, parameter: str) -> str:
        """What a parameter of the model is called in the checkpoint, which may leave out the
        model's base prefix.
        """
        if (name := self.plain_name(parameter)) is not None:
            return name
        # Classes with more than one modality (Gemma-3) name the way to the decoder otherwise when
        # they are saved.
        parts = parameter.split(".")
        layer = next(place for place, part in enumerate(parts) if part.isdigit())
        inside = ".".join(parts[layer - 1 :])
        alike = [name for name in self.tensors if name.endswith(f".{inside}")]
        if len(alike) == 1:
            return alike[0]
        if not alike:
            raise DialdownError(
                f"The checkpoint {self.name} has no tensor {parameter}, which its config asks for: "
                "fetch or save it again, config and weights of one model."
            )
        raise DialdownError(
            f"The checkpoint {self.name} has {len(alike)} tensors {inside} where the model reads "
            f"{parameter}, because layers share it or its names are of another class: untie the "
            "weights, or pass a folder that save_pretrained wrote of the causal LM alone."
        )

    def plain_name(self, parameter: str) -> str | None:
        """The same where at most the model's base prefix differs, else None."""
        prefixed = f"{self.skeleton.model.base_model_prefix}.{parameter}"
        names = (parameter, self._bare(parameter), prefixed)
        return next((name for name in names if name in self.tensors), None)

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

    @cached_property
    def sha256(self) -> str:
        """One sha256 over the names and bytes of all weights, read for it: the identity of the base
        an edit was made for.

        A copy in other files, one that stores its weights without the base prefix, or a tied weight
        under both names, is the same base; one in another dtype is not.
        """
        digests = {name: self.tensors[name].sha256() for name in self.weights}
        once = {digests[name] for name, bare in self.weights.items() if bare in self._untied}
        whole = hashlib.sha256()
        for name, bare in sorted(self.weights.items(), key=lambda item: item[1]):
            # A second name with other bytes is a weight of its own, whatever the config says of
            # tying.
            if bare in self._untied or digests[name] not in once:
                tensor = self.tensors[name]
                whole.update(f"{bare} {tensor.dtype} {tensor.shape} {digests[name]}\n".encode())
        return whole.hexdigest()


def open_checkpoint(source: str | os.PathLike[str], *, revision: str | None = None) -> Checkpoint:
    """Find the checkpoint of a model, and the down projections in it; see `locate` for the
    arguments.
    """
    source = os.fspath(source)
    folder, name, revision = locate(source, revision, patterns=DOWNLOADED)
    check_folder(folder)
    refuse_adapter(source, str(folder))
    config = read_object(own_file(folder, CONFIG))
    refuse_quantised(source, config)
    files = [own_file(folder, file) for file in weight_files(folder, source)]
    tensors = {stored.name: stored for file in files for stored in _stored(file)}
    built = skeleton(folder, name)
    base = Checkpoint(folder, name, revision, os.path.isdir(source), config, tensors, built)
    for layer in built.view.layers:
        base.weight(layer)
    return base


def skeleton(folder: Path, name: str) -> LM:
    """The model of a folder's config.json on the meta device, with the view of its down projections
    and no tokenizer (DialdownError where transformers or `MLPView` does not know it).
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
) -> tuple[Path, str, str | None]:
    """The folder of a model, its name as others know it (see `Checkpoint`), and the commit of a hub
    id or None.

    Args:
        source: a local folder, `embedded:NAME`, or a hub id.
        revision: a hub branch, tag or commit, of a hub id.
        patterns: the files that are needed of a hub id.
    """
    source = os.fspath(source)
    refuse_revision(source, revision)
    if source.startswith("embedded:"):
        return fetch_model(source.removeprefix("embedded:")), source, None
    if os.path.isdir(source):
        return Path(source), Path(source).resolve().name, None
    _check_hub_id(source)
    try:
        with reaching(source):
            downloaded = snapshot_download(
                source,
                revision=revision,
                allow_patterns=[*patterns],
                ignore_patterns=NOT_DOWNLOADED,
            )
    except (OSError, ValueError) as error:
        raise DialdownError(
            f"The model {source!r} is not a folder here and could not be fetched from the hub "
            f"({one_line(error)}): pass a hub id that can be reached from here, a local folder, or "
            "embedded:smollm2-135m."
        ) from error
    # The hub's cache names a snapshot's folder after its commit, which says more than a branch.
    return Path(downloaded), source, Path(downloaded).name


def _check_hub_id(source: str) -> None:
    """Refuse at once what is not an id of a hub's, which a hub takes minutes to refuse where nobody
    answers (DialdownError).
    """
    embedded = [f"embedded:{name}" for name in embedded_models()]
    if ":" in source or f"embedded:{source}" in embedded:
        raise DialdownError(f"There is no model {source!r}: {nearest(source, embedded)}")
    in_runs = Path(source).parts[:1] == (RUNS,)
    if in_runs or is_no_hub_id(source):
        how = "make it with `dialdown run` or `dialdown ladder`, or " if in_runs else ""
        raise DialdownError(
            f"{source} is not there: {how}pass a folder that is there, a hub id, or "
            "embedded:smollm2-135m."
        )


def _stored(file: Path) -> Iterator[Stored]:
    """The tensors of a safetensors file whose header is known to be sound."""
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        place = 8 + length + start
        yield Stored(name, entry["dtype"], tuple(entry["shape"]), file, place, end - start)
