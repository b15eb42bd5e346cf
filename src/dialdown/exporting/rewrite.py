"""The weights of a base with an edit folded in (METHOD §7): its files copied, and what the edit
changes written over its own bytes.

What an edit leaves alone is the base's, byte for byte; what it changes is read, computed in
float64, rounded once to its own dtype and written back in its place. Biases that the base lacks
come in a file of their own. So the memory it takes is that of one tensor, whatever the size of the
model.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from ..data.loading import INDEX, WEIGHTS
from ..data.model_files import own_file
from ..errors import DialdownError
from ..files import write_json
from ..interventions.folding import Fold
from ..interventions.intervention import Intervention
from ..models.bias import ensure_bias
from ..models.lm import LM
from ..progress import progress
from .checkpoint import DTYPES, Checkpoint, Stored

BIASES = "model-biases.safetensors"
# What `model.safetensors` is called beside that file: loaders that find it look for no other.
BESIDE_BIASES = "model-weights.safetensors"


def write_weights(base: Checkpoint, edit: Intervention, folder: Path) -> bool:
    """Write the weights of a base with an edit folded in to a folder, which exists.

    Returns:
        whether the MLPs have biases that the base lacks, which the config must then say.
    """
    edit.check_foldable(base.skeleton)
    lm, biases = as_exported(base, edit)
    for file in {stored.file for stored in base.tensors.values()}:
        target = folder / file.relative_to(base.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    folds = edit.folds(lm)
    for done, fold in enumerate(folds, 1):
        _write_layer(base, fold, folder, biases)
        progress("exporting", done, len(folds))
    if biases:
        _write_biases(base, folder, biases)
    elif not (folder / WEIGHTS).exists():
        shutil.copyfile(own_file(base.folder, INDEX), folder / INDEX)
    return bool(biases)


def as_exported(base: Checkpoint, edit: Intervention) -> tuple[LM, dict[str, Tensor]]:
    """The model that an export will be, without weights, and zeros for each of its biases that the
    base has not, by name in the checkpoint.
    """
    lm = base.skeleton.twin()
    if edit.needs_bias:
        ensure_bias(lm, edit.name)
    before = {name for name, _ in base.skeleton.model.named_parameters()}
    biases = {}
    for name, parameter in lm.model.named_parameters():
        if name not in before:
            weight = base.tensors[base.stored_name(name.removesuffix("bias") + "weight")]
            bias = weight.name.removesuffix("weight") + "bias"
            biases[bias] = torch.zeros(parameter.shape, dtype=DTYPES[weight.dtype])
    return lm, biases


def _write_layer(base: Checkpoint, fold: Fold, folder: Path, biases: dict[str, Tensor]) -> None:
    """Write what one linear layer or norm becomes; a bias that is new, into `biases`."""
    for part, values in folded(base, fold, biases).items():
        name = stored_as(base, fold, part, biases)
        _check_finite(name, values)
        if name in biases:
            biases[name] = values
        else:
            _overwrite(base.tensors[name], values, base.folder, folder)


def stored_as(base: Checkpoint, fold: Fold, part: str, biases: Mapping[str, Tensor]) -> str:
    """What the `weight` or `bias` of a fold's layer is called in the checkpoint."""
    weight = base.weight(fold.projection).name
    name = weight.removesuffix("weight") + part
    return name if name in biases else base.stored_name(f"{fold.projection.path}.{part}")


def folded(base: Checkpoint, fold: Fold, biases: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What one linear layer or norm of the base becomes, as it is stored: its `weight`, and its
    `bias` where that changes.
    """
    layer, bias = fold.projection, None
    weight = base.weight(layer).read()
    if fold.needs_bias:
        name = stored_as(base, fold, "bias", biases)
        bias = biases[name] if name in biases else base.tensors[name].read()
    # GPT-2's Conv1D stores the transpose, a norm one column.
    transposed = isinstance(layer.linear, Conv1D)
    columns = weight.unsqueeze(1) if weight.dim() == 1 else weight.T if transposed else weight
    columns, moved = fold.folded(columns, bias)
    written = (columns.T if transposed else columns).reshape(weight.shape)
    return {"weight": written, **({} if moved is None else {"bias": moved})}


def _check_finite(name: str, values: Tensor) -> None:
    if not values.isfinite().all():
        raise DialdownError(
            f"The edit makes {name} too large for {str(values.dtype).removeprefix('torch.')}: pass "
            "a smaller strength, or a checkpoint in float32 or bfloat16."
        )


def _overwrite(stored: Stored, values: Tensor, base: Path, folder: Path) -> None:
    """Write the values of a tensor over those in the copy of its file."""
    with (folder / stored.file.relative_to(base)).open("r+b") as handle:
        handle.seek(stored.start)
        handle.write(values.contiguous().view(-1).view(torch.uint8).numpy().data)


def _write_biases(base: Checkpoint, folder: Path, biases: Mapping[str, Tensor]) -> None:
    """Write a file of biases beside the copied files, and an index that names them all."""
    (folder / BIASES).write_bytes(save(dict(biases), metadata={"format": "pt"}))
    places = {
        stored.name: stored.file.relative_to(base.folder).as_posix()
        for stored in base.tensors.values()
    }
    if (folder / WEIGHTS).exists():
        (folder / WEIGHTS).rename(folder / BESIDE_BIASES)
        places = dict.fromkeys(places, BESIDE_BIASES)
    places |= dict.fromkeys(biases, BIASES)
    size = base.size + sum(bias.nbytes for bias in biases.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    write_json(folder / INDEX, index)
