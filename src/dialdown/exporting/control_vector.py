"""A `shift` or `steer` intervention as a control vector, the GGUF file that llama.cpp adds to a
running model (METHOD §7).

Shifted neurons write one constant per layer, sum_i delta_i * v_i, whatever the input. llama.cpp
adds the tensor `direction.N` to the residual stream after its block N, counted from 0: after the
MLP of layer N has written and before layer N + 1, or the final norm, reads. That is where the
constant of layer N belongs, so the file is the intervention exactly, in float32, with one gap:
llama.cpp has no place for block 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gguf import GGUFWriter
from numpy.typing import NDArray

from ..errors import DialdownError
from ..files import write_atomic
from ..interventions.intervention import Intervention
from ..models.lm import LM

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
    share = _share_of_first(vectors)
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
    if (edit.gain != 1).any():
        raise DialdownError(
            f"{edit.name} is a {edit.kind} edit: what it changes depends on the activations and no "
            "constant vector can do it; "
            "build it with kind='shift', or export the folded checkpoint."
        )
    vectors = np.zeros((lm.view.n_layers, lm.view.d_model))
    # Granite multiplies what an MLP writes before adding it to the residual stream.
    multiplier = getattr(lm.model.config.get_text_config(), "residual_multiplier", 1.0)
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


def _share_of_first(vectors: NDArray[np.float64]) -> float:
    """How much of what all layers write, by norm, layer 0 writes: 0 to 1."""
    norms = np.linalg.norm(vectors, axis=1)
    return float(norms[0] / norms.sum()) if norms[0] else 0.0


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
