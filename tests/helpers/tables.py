"""Neuron tables: of tiny models and their changed twins, and of invented columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import dialdown as dd
from dialdown.models import LM
from dialdown.neurons import Direction, NeuronMeans, NeuronTable
from helpers import tiny

SHAPE = (tiny.LAYERS, tiny.NEURONS)
# One neuron of each sign, and zeros of every kind, which belong to no group.
COSINE = [0.5, 0.5, -0.5, -0.5, 0.0, 0.5, 0.0, 0.5, -0.5]
MEAN = [1.0, -1.0, 1.0, -1.0, 1.0, 0.0, 0.0, 1.0, -1.0]
CHANGE = [-1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, 0.0, 1.0]


def means(protocol: Any = "strict", *, seed: int = 0, count: int = 10) -> NeuronMeans:
    return NeuronMeans(np.random.default_rng(seed).standard_normal(SHAPE), count, protocol, {})


def direction(seed: int = 0, name: str = "probe", **record: Any) -> Direction:
    # A norm far from 1, which no projection may depend on.
    return Direction(
        name,
        7 * np.random.default_rng(seed).standard_normal(tiny.WIDTH),
        "residual",
        {"seed": seed, **record},
    )


def tuned_of(lm: LM) -> LM:
    """The same model with every down projection moved."""
    tuned = lm.twin()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in tuned.view.layers:
            layer.columns.add_(0.1 * torch.randn(layer.columns.shape, generator=generator))
            if layer.post_norm is not None:
                layer.post_norm.weight.add_(0.1)
    return tuned


def compared(lm: LM, protocol: Any = "strict", along: Direction | None = None) -> NeuronTable:
    return dd.compare(
        lm, tuned_of(lm), along or direction(), means(protocol), means(protocol, seed=1)
    )


def value_vector(lm: LM, layer: int, neuron: int, protocol: str) -> np.ndarray:
    """METHOD §1 by the module's own layout and the norm's own convention."""
    down = lm.model.get_submodule(lm.view.layers[layer].path)
    weight = down.weight.detach().double().numpy()
    v = weight[neuron] if type(down).__name__ == "Conv1D" else weight[:, neuron]
    if protocol == "strict" and lm.name.removeprefix("tiny-") in ("gemma2", "gemma3"):
        norm = lm.model.model.layers[layer].post_feedforward_layernorm
        v = v * (1 + norm.weight.detach().double().numpy())
    return v


def one_layer(
    cosine: list[float], mean: list[float], change: list[float] | None = None
) -> NeuronTable:
    """A table with given columns, one layer."""
    columns: dict[str, Any] = {"cosine": cosine, "mean_base": mean}
    if change is not None:
        columns |= {"projection_change": change, "mean_tuned": mean}
    return NeuronTable(
        {name: np.array([values], dtype=float) for name, values in columns.items()},
        {"protocol": "strict", "direction": {"name": "probe"}, "base": {}},
    )


def table_of(
    cosine: Any,
    base: Any,
    tuned: Any,
    change: Any,
    turn: Any = None,
    *,
    protocol: str = "strict",
    model: str = "own",
) -> NeuronTable:
    """A compared table from (layers, neurons) arrays."""
    columns = {
        "cosine": cosine,
        "mean_base": base,
        "mean_tuned": tuned,
        "projection_change": change,
    }
    columns["value_cosine"] = np.ones_like(base) if turn is None else turn
    return NeuronTable(
        {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()},
        {"protocol": protocol, "base": {"model": model}},
    )


def random_table(seed: int = 0, *, shape: tuple[int, int] = (4, 30), **options: Any) -> NeuronTable:
    rng = np.random.default_rng(seed)
    cosine, base, shift, change = (rng.standard_normal(shape) for _ in range(4))
    # Zeros of every kind, which no group and no sign may count.
    cosine[0, 0] = base[1, 1] = change[2, 2] = 0
    return table_of(
        cosine, base, base + 0.1 * shift, change, 1 - rng.random(shape) * 1e-3, **options
    )


def members(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()
