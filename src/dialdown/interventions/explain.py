"""Gains and other edits read as explanations: how far each neuron moves, which groups follow the
four-group rule, and an edit with only its first neurons, or its numbers on others (METHOD §3–§5).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..errors import DialdownError
from ..models.lm import LM
from ..neurons.activations import NeuronMeans
from ..neurons.table import NeuronTable
from .intervention import Intervention
from .paper import GROUPS_DOWN
from .rank_one import RankOne


def as_scale(name: str, gain: NDArray[np.float64], record: dict[str, Any]) -> Intervention:
    """A `scale` intervention from gains, (L, F) float64: whatever differs from 1 is selected."""
    return Intervention(name, "scale", gain, record=record)


def as_rank_one(name: str, rank_one: RankOne, record: dict[str, Any]) -> Intervention:
    """A `rank_one` intervention; of MLPs, every neuron that is read is selected."""
    if rank_one.site == "attention":
        return Intervention(name, "rank_one", rank_one=rank_one, record=record)
    read = rank_one.inputs_read
    return Intervention(
        name,
        "rank_one",
        np.ones(read.shape),
        np.zeros(read.shape),
        read,
        rank_one=rank_one,
        record=record,
    )


def importance(lm: LM, edit: Intervention, base: NeuronMeans) -> NDArray[np.float64]:
    """How far an edit moves what each neuron adds to the residual stream on average, (L, F)
    float64: the norm of its change, |change of the mean activation| * ||v_i|| times the layer's
    multiplier where the edit acts on activations; 0 where it is at attention's output, or maps
    other outputs.
    """
    norms = [
        abs(layer.multiplier) * layer.value_vectors().double().norm(dim=1).cpu().numpy()
        for layer in lm.view.layers
    ]
    moved: NDArray[np.float64] = np.abs(_mean_change(edit, base.means)) * np.stack(norms)
    if edit.rank_one is not None and edit.rank_one.site == "mlp":
        moved += np.abs(base.means) * _lengths(edit.rank_one, lm)
    return moved


def _lengths(rank_one: RankOne, lm: LM) -> NDArray[np.float64]:
    """(L, F): how long the vector is that each neuron writes besides, for an activation of 1."""
    reads = rank_one.reads.reshape(-1, *lm.view.shape)
    written = rank_one.written(lm).reshape(-1, *rank_one.writes.shape[-2:])
    products = np.einsum("ald,bld->lab", written, written)
    squares: NDArray[np.float64] = np.einsum("alf,lab,blf->lf", reads, products, reads)
    return np.asarray(np.sqrt(squares.clip(min=0)))


def _mean_change(edit: Intervention, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    if not edit.gain.size:
        return np.zeros_like(mean)
    return np.asarray((edit.gain - 1) * mean + edit.offset)


def relative_change(table: NeuronTable, edit: Intervention) -> NDArray[np.float64]:
    """By which share of itself an edit moves each neuron's mean activation, (L, F) float64: gain -
    1 where it scales, 0 where the mean is.
    """
    if edit.kind == "scale":
        return edit.gain - 1
    mean = table.grid("mean_base")
    return np.divide(_mean_change(edit, mean), mean, out=np.zeros_like(mean), where=mean != 0)


def by_group(table: NeuronTable, edit: Intervention, moved: NDArray[np.float64]) -> pl.DataFrame:
    """What gains, or another edit, do in each of the groups that the table's direction makes
    without tuning: how many neurons, their mean change, and who follows the rule.

    The four-group rule (METHOD §4) dials TP and AN down and AP and TN up; `with_rule` is the share
    of a group's dialled neurons whose activation moves that way, `with_rule_weighted` the same with
    each neuron counting by `moved`, (L, F) from `importance`.

    Returns:
        One row per group and one for `all`: `group`, `neurons`, `mean_change` (relative, of the
        activation: gain - 1), `mean_size` (mean of its absolute value), `share_moved`, `with_rule`,
        `with_rule_weighted`.
    """
    change = relative_change(table, edit)
    masks = table.groups(changed=False)
    down = np.logical_or(*(masks[name] for name in GROUPS_DOWN))
    follows = np.where(down, change < 0, change > 0)
    rows = []
    for name, mask in [*masks.items(), ("all", np.logical_or.reduce([*masks.values()]))]:
        count, weight = int(mask.sum()), float(moved[mask].sum())
        dialled = mask & (change != 0)
        weighted = float(np.average(follows[mask], weights=moved[mask])) if weight else None
        rows.append({
            "group": name,
            "neurons": count,
            "mean_change": float(change[mask].mean()) if count else None,
            "mean_size": float(np.abs(change[mask]).mean()) if count else None,
            "share_moved": weight / float(moved.sum()) if weight else 0.0,
            "with_rule": float(follows[dialled].mean()) if dialled.any() else None,
            "with_rule_weighted": weighted,
        })  # fmt: skip
    return pl.DataFrame(rows)


def keep_top(gains: Intervention, order: NDArray[np.float64], count: int) -> Intervention:
    """The gains of the `count` neurons that come first by `order` (L, F), highest first; every
    other neuron keeps its activation.
    """
    further = gains.rank_one or gains.outputs
    if gains.kind != "scale" or further or gains.vector is not None or gains.offset.any():
        kind = "scale with more to it" if gains.kind == "scale" else gains.kind
        raise DialdownError(
            f"{gains.name} is a {kind} edit, and only the gains of a scale can be kept one by one: "
            "pass neuron gains."
        )
    kept = np.zeros(order.size, dtype=bool)
    kept[np.argsort(-order.ravel(), kind="stable")[:count]] = True
    kept = kept.reshape(order.shape) & gains.selected
    gain = np.where(kept, gains.gain, 1.0)
    return replace(gains, name=f"{gains.name}_top_{count}", gain=gain, selected=kept)


def shuffled(edit: Intervention, *, seed: int) -> Intervention:
    """The control of gains, and of what a layer reads: the same numbers, each layer's among its own
    neurons, or channels of its heads, at random (METHOD §5).
    """
    further = edit.rank_one
    if edit.outputs is not None:
        raise DialdownError(
            f"{edit.name} maps outputs of {len(edit.outputs.widths)} modules, of which no shuffled "
            "control is made: pass gains, or directions."
        )
    if edit.vector is not None:
        raise DialdownError(
            f"{edit.name} steers, and its one vector is no number of a neuron's to shuffle: pass "
            "gains or directions, or as a control steering along a random direction."
        )

    def moved(numbers: NDArray[Any]) -> NDArray[Any]:
        # One order for all that is said of a neuron.
        layers = numbers.shape[-2:]
        places = np.broadcast_to(np.arange(layers[1]), layers)
        order = np.random.default_rng(seed).permuted(places, axis=1)
        order = order.reshape((1,) * (numbers.ndim - 2) + layers)
        return np.asarray(np.take_along_axis(numbers, order, axis=-1))

    control = replace(
        edit,
        gain=moved(edit.gain),
        offset=moved(edit.offset),
        selected=moved(edit.selected),
        rank_one=further and replace(further, reads=moved(further.reads)),
        record={**edit.record, "seed": seed},
    )
    return control.control_for(edit, "random_neurons")
