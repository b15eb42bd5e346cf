"""Control vectors, the GGUF files that llama.cpp and repeng add to a running model (METHOD §7).

Shifted neurons write one constant per layer, sum_i delta_i * v_i, whatever the input. llama.cpp
adds the tensor `direction.N` to the residual stream after its block N, counted from 0: after the
MLP of layer N has written and before layer N + 1, or the final norm, reads. That is where the
constant of layer N belongs, so a `shift` or `steer` and such a file are the same, in float32, with
one gap: there is no place for block 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, GGUFWriter
from numpy.typing import NDArray

from ..errors import DialdownError
from ..files import write_atomic
from ..interventions.intervention import Intervention
from ..models.lm import LM
from ..models.written import check_written

ARCHITECTURE = "controlvector"
PREFIX = "direction."


def write_control_vector(
    lm: LM, edit: Intervention, path: str | Path, *, skip_first_layer: bool = False
) -> Path:
    """Write an intervention whose effect is a constant as a GGUF control vector: `llama-server
    --control-vector FILE`.

    The file has float32 tensors `direction.1` to `direction.L-1` of shape (d,), in units of the
    residual stream, L layers counted from 0: `direction.N` is added to the output of layer N at
    every position. A steering is added to the output of the last layer. Where a norm follows the
    MLP (Gemma-2/3) a steering can be written, a shift cannot: the norm makes of one constant a
    different one at every token.

    Args:
        lm: the model the intervention was built for.
        edit: of kind `shift`, `steer` or `none`; at a strength other than 1, `edit.at(strength)`.
        path: the file to write, which is returned.
        skip_first_layer: leave the shift of layer 0 out, which no control vector can hold; the file
            is then not the whole intervention, and its description says so.

    Raises:
        DialdownError: the intervention multiplies or clamps activations, shifts layer 0, or shifts
            under a norm after the MLP; or it is of another model, or the file cannot be written.
    """
    path = Path(path)
    vectors = _constants(lm, edit)
    norms = np.linalg.norm(vectors, axis=1)
    # Of what all layers write, by norm.
    share = norms[0] / norms.sum() if norms[0] else 0.0
    if share > 0 and not skip_first_layer:
        raise DialdownError(
            f"{edit.name} shifts layer 0 ({share:.0%} of what it writes) and llama.cpp adds no "
            "control vector there: "
            "pass skip_first_layer=True to leave that layer out, or export the folded checkpoint, "
            "which is exact."
        )
    description = f"dialdown {edit.name}"
    if share > 0:
        description += f", without the {share:.0%} of it that layer 0 would write"
    write_atomic(
        path, lambda partial: _write(partial, vectors, lm.model.config.model_type, description)
    )
    return path


def _constants(lm: LM, edit: Intervention) -> NDArray[np.float64]:
    """(L, d): what the intervention adds to the residual stream after each layer."""
    edit.check(lm)
    check_written(lm)
    if edit.outputs is not None:
        raise DialdownError(
            f"{edit.name} maps outputs inside of layers, which no vector on the residual stream "
            "does: use the same method at the neurons, or export the folded checkpoint."
        )
    if (edit.gain != 1).any() or edit.rank_one is not None:
        raise DialdownError(
            f"{edit.name} is a {edit.kind} edit: what it changes depends on the activations and no "
            "constant vector can do it; "
            "build it with kind='shift', or export the folded checkpoint."
        )
    vectors = np.zeros((lm.view.n_layers, lm.view.d_model))
    multiplier = lm.view.residual_multiplier
    for index, offset in enumerate(edit.offset):
        if not offset.any():
            continue
        layer = lm.view.layers[index]
        if layer.post_norm is not None:
            raise DialdownError(
                f"{edit.name} shifts neurons under the norm after the MLP of {lm.name}, which "
                "makes the constant another one at every token: "
                "use kind='scale' and export the folded checkpoint, or steer."
            )
        columns = layer.columns.double()
        written = columns @ torch.as_tensor(offset, device=columns.device)
        vectors[index] = multiplier * written.cpu().numpy()
    if edit.vector is not None:
        vectors[-1] += edit.vector
    return vectors


def read_control_vector(lm: LM, path: str | Path) -> Intervention:
    """A control vector of repeng, llama.cpp or dialdown as an intervention, which can then be
    evaluated, dialled, folded and exported like any other.

    A vector of the last layer alone becomes a `steer`. Any other becomes a `shift`: in each layer
    the smallest offsets (by their sum of squares) with which its neurons write the vector, which is
    the vector itself to rounding, at every position.

    Args:
        lm: the model the vector was made for.
        path: a GGUF file, such as `ControlVector.export_gguf` of repeng writes.

    Raises:
        DialdownError: the file is missing, damaged or no control vector, is of a model of another
            size, or its vector cannot be written by neurons: an MLP followed by a norm, or one
            whose value vectors do not span the residual stream.
    """
    vectors = _read(Path(path), lm)
    record = {"base": lm.describe(), "control_vector": Path(path).name}
    if not vectors[:-1].any():
        return Intervention("control_vector", "steer", vector=vectors[-1], record=record)
    offset = np.zeros(lm.view.shape)
    multiplier = lm.view.residual_multiplier
    for index in np.flatnonzero(vectors.any(1)):
        layer = lm.view.layers[index]
        if layer.post_norm is not None:
            raise DialdownError(
                f"{path} adds a vector after layer {index} of {lm.name}, whose MLP is followed by "
                "a norm, so no constant of its neurons is that vector: pass a control vector of "
                "the last layer alone, or of another model."
            )
        columns = layer.columns.detach().double().cpu()
        expected = torch.as_tensor(vectors[index] / multiplier)
        offset[index] = torch.linalg.lstsq(columns, expected[:, None]).solution[:, 0].numpy()
        missed = columns @ torch.as_tensor(offset[index]) - expected
        if missed.norm() > 1e-6 * expected.norm():
            raise DialdownError(
                f"The neurons of layer {index} of {lm.name} cannot write the vector that {path} "
                "adds there: pass a control vector of the last layer alone."
            )
    gain = np.ones_like(offset)
    return Intervention("control_vector", "shift", gain, offset, offset != 0, record=record)


def _read(path: Path, lm: LM) -> NDArray[np.float64]:
    """(L, d): the vectors of a file, by the layer whose output they are added to."""
    try:
        reader = GGUFReader(path)
        field = reader.get_field("general.architecture")
        architecture = field.contents() if field else None
        tensors = {int(tensor.name.removeprefix(PREFIX)): tensor.data for tensor in reader.tensors}
    except FileNotFoundError as error:
        raise DialdownError(
            f"{path} does not exist: pass the file a control vector was written to."
        ) from error
    except (OSError, ValueError, IndexError, KeyError) as error:
        # The reader has no error of its own: a file cut short is whatever numpy says about it.
        raise DialdownError(
            f"{path} is damaged or no GGUF control vector ({error}): write it again."
        ) from error
    if architecture != ARCHITECTURE:
        raise DialdownError(
            f"{path} is a GGUF file of {architecture!r}, not a control vector: pass one that "
            "repeng, llama.cpp or write_control_vector wrote."
        )
    vectors = np.zeros((lm.view.n_layers, lm.view.d_model))
    for index, vector in tensors.items():
        if not 0 < index < len(vectors) or vector.shape != vectors[0].shape:
            raise DialdownError(
                f"{path} has a vector of shape {vector.shape} for layer {index}, and {lm.name} has "
                f"{len(vectors)} layers of {len(vectors[0])} dimensions: pass the model the vector "
                "was made for."
            )
        vectors[index] = vector
    if not np.isfinite(vectors).all():
        raise DialdownError(f"{path} has numbers that are not finite: write it again.")
    return vectors


def _write(path: Path, vectors: NDArray[np.float64], model_type: str, description: str) -> None:
    writer = GGUFWriter(path, ARCHITECTURE)
    writer.add_description(description)
    writer.add_string(f"{ARCHITECTURE}.model_hint", model_type)
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vectors) - 1)
    for layer, vector in enumerate(vectors[1:], start=1):
        writer.add_tensor(f"{PREFIX}{layer}", vector.astype(np.float32))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
