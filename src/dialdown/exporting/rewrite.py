"""A checkpoint written again with some columns changed: which tensors, then their bytes, one tensor
at a time.

What an edit leaves alone is copied from file to file byte for byte; what it changes is read,
computed in float64, rounded once to its own dtype (METHOD §7) and written. So the memory it takes
is that of one tensor, whatever the size of the model.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..data.loading import INDEX, WEIGHTS
from ..errors import DialdownError
from ..files import write_atomic, write_json
from ..interventions.intervention import Intervention
from ..models.bias import ensure_bias
from ..models.lm import LM
from ..progress import Progress
from .checkpoint import DTYPES, Checkpoint, Stored

SHARD_BYTES = 5_000_000_000
# What the families call the number of neurons per layer.
WIDTHS = ("intermediate_size", "n_inner", "ffn_hidden_size")

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Planned:
    """One tensor of the new checkpoint.

    Attributes:
        name: its name.
        dtype: its safetensors code.
        shape: its shape when written.
        source: the tensor it is made from; a new one starts as zeros.
        changes: what is done to it, in order; copied byte for byte where there is nothing to do.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Stored | None
    changes: tuple[Change, ...] = ()

    @property
    def size(self) -> int:
        """Bytes when written."""
        if self.source is not None and self.shape == self.source.shape:
            return self.source.size
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def chunks(self, digest: Any | None) -> Iterator[bytes | memoryview]:
        """The bytes to write; those of the source go through `digest`, where there is one, on their
        way.
        """
        if self.source is not None and not self.changes:
            for chunk in self.source.chunks():
                if digest is not None:
                    digest.update(chunk)
                yield chunk
            return
        if self.source is None:
            value = torch.zeros(self.shape, dtype=DTYPES[self.dtype])
        else:
            value = self.source.read()
            if digest is not None:
                digest.update(_bytes(value))
        for change in self.changes:
            value = change(value)
        if not value.isfinite().all():
            raise DialdownError(
                f"The edit makes {self.name} too large for the checkpoint's {self.dtype}: pass a "
                "smaller strength, or a checkpoint in float32 or bfloat16."
            )
        yield _bytes(value)


@dataclass(frozen=True)
class Plan:
    """What an export will write.

    Attributes:
        tensors: every tensor, in order.
        config: the new config.json, or None where the base's is copied.
        dropped: neurons removed from each layer by pruning.
    """

    tensors: list[Planned]
    config: dict[str, Any] | None
    dropped: int = 0

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self.tensors)


def plan_edit(checkpoint: Checkpoint, edit: Intervention, *, prune: bool = False) -> Plan:
    """Which tensors of a checkpoint an edit changes, adds or narrows (METHOD §7).

    Args:
        checkpoint: the base.
        edit: the edit.
        prune: remove as many neurons of gain 0 from every layer as the layer with fewest of them
            has.

    Raises:
        DialdownError: the edit is of another shape, needs a bias the architecture has no place for,
            would change a shared matrix, or there is nothing to prune.
    """
    edit.check_foldable(checkpoint.skeleton)
    draft = _Draft(checkpoint, edit, checkpoint.skeleton.twin())
    if edit.needs_bias:
        draft.add_biases()
    for index in range(draft.lm.view.n_layers):
        if edit.changes(index, draft.lm):
            draft.change_layer(index)
    dropped = draft.prune() if prune else 0
    return Plan(
        draft.tensors(), None if draft.config == checkpoint.config else draft.config, dropped
    )


@dataclass
class _Draft:
    """A plan being made: changes, new shapes and new tensors, by name in the checkpoint."""

    checkpoint: Checkpoint
    edit: Intervention
    lm: LM  # without weights, and as the export will be
    changes: dict[str, list[Change]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    added: dict[str, Stored] = field(
        default_factory=dict
    )  # a bias that is new: the weight it belongs to

    def __post_init__(self) -> None:
        self.config = copy.deepcopy(self.checkpoint.config)

    def name(self, parameter: str) -> str:
        """The stored name of a parameter, also of one that is new."""
        stem, _, last = parameter.rpartition(".")
        if last == "bias":
            sibling = self.checkpoint.stored_name(f"{stem}.weight").removesuffix("weight") + "bias"
            if sibling in self.added:
                return sibling
        return self.checkpoint.stored_name(parameter)

    def add_biases(self) -> None:
        """Give the MLPs a bias where they have none, as `Intervention.fold` does."""
        before = {name for name, _ in self.lm.model.named_parameters()}
        ensure_bias(self.lm, self.edit.name)
        for name, parameter in self.lm.model.named_parameters():
            if name not in before:
                weight = self.checkpoint.stored_name(name.removesuffix("bias") + "weight")
                bias = weight.removesuffix("weight") + "bias"
                self.added[bias] = self.checkpoint.tensors[weight]
                self.shapes[bias] = tuple(parameter.shape)
        if self.added:
            self.text_config()["mlp_bias"] = True

    def text_config(self) -> dict[str, Any]:
        """The part of the config the language model is built from."""
        part: dict[str, Any] = self.config.get("text_config", self.config)
        return part

    def change_layer(self, index: int) -> None:
        path = self.lm.view.layers[index].path
        self._change(self.checkpoint.downs[index], partial(self._new_weight, index))
        if self.edit.needs_bias:
            self._change(self.name(f"{path}.bias"), partial(self._new_bias, index))

    def _change(self, name: str, change: Change) -> None:
        self.changes.setdefault(name, []).append(change)

    def _new_weight(self, index: int, weight: Tensor) -> Tensor:
        columns = self._turned(index, weight)
        return self._turned(index, self.edit.folded(index, self.lm, columns, None)[0])

    def _new_bias(self, index: int, bias: Tensor) -> Tensor:
        weight = self.checkpoint.tensors[self.checkpoint.downs[index]].read()
        moved = self.edit.folded(index, self.lm, self._turned(index, weight), bias)[1]
        assert moved is not None  # a bias went in
        return moved

    def _turned(self, index: int, weight: Tensor) -> Tensor:
        """(d, F) from the module's own layout, or back: GPT-2's Conv1D stores the transpose."""
        return weight.T if isinstance(self.lm.view.layers[index].down, Conv1D) else weight

    def prune(self) -> int:
        """Drop neurons whose gain is 0; how many in each layer."""
        zero = self.edit.gain == 0
        count = int(zero.sum(1).min()) if zero.size else 0
        if not count:
            raise DialdownError(
                f"{self.edit.name} cannot be pruned: at least one layer has no neuron whose gain "
                "is 0, and all layers must keep one width, "
                "so export it without pruning, or pass a `set` edit that acts in every layer."
            )
        config = self.lm.model.config.get_text_config().to_dict()
        widths = [key for key in WIDTHS if key in config]
        if not widths:
            raise DialdownError(
                f"{self.edit.name} cannot be pruned: the config of {self.checkpoint.name} has no "
                f"width of its MLP (looked for {', '.join(WIDTHS)}), so export it without pruning."
            )
        for index in range(self.lm.view.n_layers):
            kept = np.ones(self.lm.view.n_neurons, dtype=bool)
            kept[np.flatnonzero(zero[index])[:count]] = False
            self._keep(index, torch.from_numpy(np.flatnonzero(kept)))
        for key in widths:
            self.text_config()[key] = self.lm.view.n_neurons - count
        return count

    def _keep(self, index: int, kept: Tensor) -> None:
        """Narrow the down projection's columns, and what feeds them, to some neurons."""
        layer, width = self.lm.view.layers[index], self.lm.view.n_neurons
        parent = layer.path.rpartition(".")[0]
        self._narrow(f"{layer.path}.weight", 0 if isinstance(layer.down, Conv1D) else 1, kept)
        feeding = 0
        for name, module in self.lm.model.get_submodule(parent).named_children():
            inputs = isinstance(module, nn.Linear | Conv1D) and module is not layer.down
            if (
                inputs
                and (module.nf if isinstance(module, Conv1D) else module.out_features) == width
            ):
                feeding += 1
                self._narrow(
                    f"{parent}.{name}.weight", 1 if isinstance(module, Conv1D) else 0, kept
                )
                if module.bias is not None:
                    self._narrow(f"{parent}.{name}.bias", 0, kept)
        if not feeding:
            raise DialdownError(
                f"{self.edit.name} cannot be pruned: no matrix beside {layer.path} has {width} "
                "outputs, so export it without pruning."
            )

    def _narrow(self, parameter: str, axis: int, kept: Tensor) -> None:
        name = self.name(parameter)
        shape = list(self.shapes.get(name) or self.checkpoint.tensors[name].shape)
        shape[axis] = len(kept)
        self.shapes[name] = tuple(shape)
        if name not in self.added:
            self._change(name, lambda value: value.index_select(axis, kept))

    def tensors(self) -> list[Planned]:
        """Every tensor in the base's order, a new bias after its weight."""
        behind = {weight.name: bias for bias, weight in self.added.items()}
        planned = []
        for name, stored in self.checkpoint.tensors.items():
            planned.append(
                Planned(
                    name,
                    stored.dtype,
                    self.shapes.get(name, stored.shape),
                    stored,
                    tuple(self.changes.get(name, ())),
                )
            )
            if name in behind:
                bias = behind[name]
                planned.append(
                    Planned(
                        bias,
                        stored.dtype,
                        self.shapes[bias],
                        None,
                        tuple(self.changes.get(bias, ())),
                    )
                )
        return planned


def write_tensors(
    folder: Path,
    tensors: Sequence[Planned],
    *,
    metadata: Mapping[str, str],
    digests: Mapping[str, Any],
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write tensors as `model.safetensors`, or as shards and their index.

    Args:
        folder: where to.
        tensors: what to write.
        metadata: of every header.
        digests: a sha256 per tensor name, fed the bytes of the tensor's source.
        shard_bytes: the size a file does not exceed, unless one tensor does.
        progress: called with (label, tensors done, tensors in all).

    Raises:
        DialdownError: the disk is full, the folder cannot be written, or a value overflows its
            dtype.
    """
    shards = _shards(tensors, shard_bytes)
    numbered = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    names = numbered if len(shards) > 1 else [WEIGHTS]
    done = 0
    for name, shard in zip(names, shards, strict=True):
        write_atomic(folder / name, partial(_write_shard, shard, metadata, digests))
        done += len(shard)
        if progress:
            progress("exporting", done, len(tensors))
    if len(shards) > 1:
        weight_map = {
            tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard
        }
        size = sum(tensor.size for tensor in tensors)
        write_json(
            folder / INDEX,
            {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))},
        )


def _shards(tensors: Sequence[Planned], shard_bytes: int) -> list[list[Planned]]:
    shards: list[list[Planned]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.size
    return shards


def _write_shard(
    shard: Sequence[Planned], metadata: Mapping[str, str], digests: Mapping[str, Any], path: Path
) -> None:
    # Wide numbers first, so that each tensor starts at a multiple of its own width.
    shard = sorted(shard, key=lambda tensor: -(tensor.size // max(1, math.prod(tensor.shape))))
    header: dict[str, Any] = {"__metadata__": dict(metadata) or {"format": "pt"}}
    start = 0
    for tensor in shard:
        end = start + tensor.size
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for tensor in shard:
            for chunk in tensor.chunks(digests.get(tensor.name)):
                handle.write(chunk)


def _bytes(value: Tensor) -> memoryview:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().data
