"""What an edit's neurons are explained by, and the control that shuffles them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import dialdown as dd
from dialdown import DialdownError
from dialdown.interventions import Intervention
from dialdown.interventions.explain import by_group, importance, keep_top, relative_change, shuffled
from dialdown.models import LM
from dialdown.neurons import Direction, NeuronMeans
from helpers import tiny
from helpers.edits import make
from helpers.tables import SHAPE


def test_shuffled_gains_are_the_same_numbers_in_each_layer() -> None:
    gain = np.arange(12.0).reshape(3, 4)
    edit = dd.Intervention("g", "scale", gain, np.zeros((3, 4)), gain > 5)
    control = shuffled(edit, seed=0)
    assert (np.sort(control.gain, axis=1) == gain).all()
    assert (control.gain != gain).any()
    np.testing.assert_array_equal(control.selected, control.gain > 5)
    assert control.control_of == "g"


def test_keeping_the_first_neurons_of_an_order(llama: LM) -> None:
    rng = np.random.default_rng(0)
    shape = (tiny.LAYERS, tiny.NEURONS)
    gain, order = rng.normal(1, 0.1, shape), rng.random(shape)
    gains = Intervention("g", "scale", gain, np.zeros(shape), np.ones(shape, dtype=bool))
    kept = keep_top(gains, order, 5)
    best = np.sort(order.ravel())[-5]
    np.testing.assert_array_equal(kept.selected, order >= best)
    np.testing.assert_array_equal(kept.gain, np.where(order >= best, gain, 1.0))
    assert kept.neurons == 5
    steered = replace(gains, vector=make(llama, "steer").vector)
    for edit in (make(llama, "rank_one"), make(llama, "attention"), steered):
        with pytest.raises(DialdownError, match="and only the gains of a scale"):
            keep_top(edit, order, 5)


@pytest.mark.parametrize("kind", ["scale", "steer"])
def test_a_steering_is_not_its_own_shuffled_control(llama: LM, kind: str) -> None:
    edit = replace(make(llama, kind), vector=make(llama, "steer").vector)
    with pytest.raises(DialdownError, match="it steers, and its one vector"):
        shuffled(edit, seed=3)


@pytest.mark.parametrize("kind", ["scale", "shift", "set"])
def test_an_explanation_reads_every_kind_by_what_it_does_to_the_mean(llama: LM, kind: Any) -> None:
    means = NeuronMeans(np.random.default_rng(0).standard_normal(SHAPE), 10, "strict", {})
    probe = Direction("probe", np.random.default_rng(1).standard_normal(tiny.WIDTH), "residual", {})
    table = dd.neuron_table(llama, probe, means)
    edit = dd.edit(table, alpha=0.5, beta=0.2, kind=kind)
    change = relative_change(table, edit)
    np.testing.assert_allclose(np.abs(change[edit.selected]), 0.2)
    assert not change[~edit.selected].any()
    groups = by_group(table, edit, importance(llama, edit, means))
    assert groups["with_rule"].to_list() == [1.0] * 5
    expected = [
        abs(change[layer, neuron] * means.means[layer, neuron]) * float(v.norm())
        for layer in range(tiny.LAYERS)
        for neuron, v in enumerate(llama.view.layers[layer].value_vectors().double())
    ]
    np.testing.assert_allclose(importance(llama, edit, means).ravel(), expected, rtol=1e-6)
