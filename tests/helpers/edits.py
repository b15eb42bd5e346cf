"""Random interventions of every kind, and what they are tried on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dialdown.interventions import Intervention
from dialdown.models import LM
from helpers import tiny

KINDS = ("set", "shift", "scale", "affine", "steer")
# Architectures whose down projection has a bias, or gets one by the `mlp_bias` of its own config.
WITH_BIAS = {
    "gpt2", "llama", "gpt_neox", "gptj", "gpt_neo", "gpt_bigcode", "codegen", "phi", "bloom", (
        "starcoder2"
    ), "smollm3",
    "granite", "nemotron", "helium", "seed_oss", "arcee",
}  # fmt: skip
IDS = tiny.random_ids(2, 12)


def make(
    lm: LM, kind: str, *, seed: int = 0, share: float = 0.5, strength: float = 1.0
) -> Intervention:
    """A strong random intervention on a share of all neurons."""
    rng = np.random.default_rng(seed)
    if kind == "steer":
        return Intervention("it", "steer", vector=strength * rng.standard_normal(lm.view.d_model))
    shape = (lm.view.n_layers, lm.view.n_neurons)
    selected = rng.random(shape) < share
    values = strength * rng.standard_normal(shape)
    gain = {"set": 0.0, "shift": 1.0}.get(kind, 1 + values)
    return Intervention(
        "it",
        kind,  # type: ignore[arg-type]
        np.where(selected, gain, 1.0),
        np.where(selected, 0.0 if kind == "scale" else values, 0.0),
        selected,
        record={"seed": seed},
    )


def exact(edit: Intervention) -> Intervention:
    """With gains that float32 holds, as trained ones are, so that rounding them changes nothing."""
    return replace(edit, gain=edit.gain.astype(np.float32).astype(np.float64))
