"""Random interventions of every kind, and what they are tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dialdown.interventions import Intervention, Outputs, RankOne
from dialdown.models import LM
from dialdown.models.projection import Projection
from dialdown.models.sites import layer_norms, mlp_linears, projections
from helpers import tiny

# "attention" is a rank_one edit of attention's output projections, "directions" one of several
# directions per layer; "linears" and "norms" map the outputs of those modules.
KINDS = (
    *("set", "shift", "scale", "affine", "rank_one", "directions", "attention", "linears", "norms"),
    "steer",
)
# What folds into weights alone, wherever an architecture has no bias.
WITHOUT_BIAS = ("scale", "rank_one", "directions", "attention", "linears", "norms")
# Architectures whose down projection has a bias, or gets one by the `mlp_bias` of its own config.
WITH_BIAS = {
    "gpt2", "llama", "gpt_neox", "gptj", "gpt_neo", "gpt_bigcode", "codegen", "phi", "bloom", (
        "starcoder2"
    ), "smollm3",
    "granite", "nemotron", "helium", "seed_oss", "arcee", "minicpm3",
}  # fmt: skip
IDS = tiny.random_ids(2, 12)


def make(
    lm: LM, kind: str, *, seed: int = 0, share: float = 0.5, strength: float = 1.0
) -> Intervention:
    """A strong random intervention on a share of all neurons."""
    rng = np.random.default_rng(seed)
    if kind == "steer":
        return Intervention("it", "steer", vector=strength * rng.standard_normal(lm.view.d_model))
    if kind == "attention":
        channels = projections(lm, "attention")[0].columns.shape[1]
        reads = strength * rng.standard_normal((lm.view.n_layers, channels))
        writes = rng.standard_normal((lm.view.n_layers, lm.view.d_model)) / 2
        edit = RankOne(np.where(rng.random(reads.shape) < share, reads, 0), writes, "attention")
        return Intervention("it", "rank_one", rank_one=edit, record={"seed": seed})
    if kind in ("linears", "norms"):
        outputs = _outputs(lm, mlp_linears if kind == "linears" else layer_norms, rng, share)
        return Intervention("it", "outputs", outputs=outputs.at(strength), record={"seed": seed})
    shape = (lm.view.n_layers, lm.view.n_neurons)
    selected = rng.random(shape) < share
    values = strength * rng.standard_normal(shape)
    if kind in ("rank_one", "directions"):
        writes = rng.standard_normal((lm.view.n_layers, lm.view.d_model)) / 4
        if kind == "directions":
            values = np.stack([values, strength * rng.standard_normal(shape)])
            writes = np.stack([writes, rng.standard_normal(writes.shape) / 4])
        reads = np.where(selected, values, 0.0)
        return Intervention(
            "it",
            "rank_one",
            np.ones(shape),
            np.zeros(shape),
            selected,
            rank_one=RankOne(reads, writes),
            record={"seed": seed},
        )
    gain = {"set": 0.0, "shift": 1.0}.get(kind, 1 + values)
    return Intervention(
        "it",
        kind,  # type: ignore[arg-type]
        np.where(selected, gain, 1.0),
        np.where(selected, 0.0 if kind == "scale" else values, 0.0),
        selected,
        record={"seed": seed},
    )


def _outputs(
    lm: LM, find: Callable[[LM], list[list[str]]], rng: np.random.Generator, share: float
) -> Outputs:
    """Gains on a share of all outputs, and offsets where a module has a bias to hold them."""
    modules = {path: lm.model.get_submodule(path) for layer in find(lm) for path in layer}
    layers = [Projection(path, module) for path, module in modules.items()]
    widths = {layer.path: len(layer.columns) for layer in layers}
    held = np.concatenate([np.full(widths[a.path], a.bias is not None) for a in layers])
    moved = rng.random(held.size) < share
    gain = np.where(moved, 1 + rng.standard_normal(held.size), 1.0)
    return Outputs(widths, gain, np.where(moved & held, rng.standard_normal(held.size) / 4, 0.0))


def hooked(lm: LM, edit: Intervention, ids: torch.Tensor = IDS, **options: Any) -> torch.Tensor:
    """Logits under the edit's hooks."""
    with edit.applied(lm, **options):
        return tiny.logits(lm, ids)


def exact(edit: Intervention) -> Intervention:
    """With numbers that float32 holds, as trained ones are, so that rounding them changes
    nothing.
    """

    def short(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        return numbers.astype(np.float32).astype(np.float64)

    further = edit.rank_one
    if further is not None:
        further = replace(further, reads=short(further.reads), writes=short(further.writes))
    outputs = edit.outputs and replace(edit.outputs, gain=short(edit.outputs.gain))
    return replace(edit, gain=short(edit.gain), rank_one=further, outputs=outputs)
