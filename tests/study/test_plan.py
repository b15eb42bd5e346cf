"""Which rows a study measures, neuron by neuron."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

import dialdown as dd
from dialdown.models import LM
from dialdown.models.protocol import Protocol
from dialdown.study import Config, load_config
from dialdown.study.plan import Tables, plan
from helpers.tables import compared, direction, means

# The groups as signs of cosine and mean activation, and whether the notebook takes the highest
# cosines of a group or the lowest.
NOTEBOOK = [(1, 1, True), (1, -1, False), (-1, 1, False), (-1, -1, True)]


def tables(lm: LM, protocol: Protocol) -> Tables:
    """What a study has of a model whose down projections were moved."""
    probe = direction(residual_norm=1.0)
    contrast, noise = (dd.neuron_table(lm, direction(seed), means(protocol)) for seed in (1, 2))
    return Tables(compared(lm, protocol, probe), contrast, noise, probe, direction(2))


def test_gpt2s_edits_are_those_of_its_notebook(gpt2: LM) -> None:
    """Half of each group, without the fifth of all neurons of highest mean activation: TP and AN
    from the highest cosines and down, AP and TN from the lowest and up (METHOD §4).
    """
    flags = {"interventions.toxic_neurons": 5}
    settings = load_config(preset="gpt2-medium", flags=flags).interventions
    neuron_tables = tables(gpt2, "paper")
    rows = plan("paper", neuron_tables, settings, prompts=1, control_prompts=1, seed=0)
    planned = {row.intervention.name: row.intervention for row in rows}
    for name, table in (
        ("edit_probe_set", neuron_tables.probe),
        ("edit_probe_free_set", neuron_tables.contrast),
    ):
        cosine, mean = table.grid("cosine"), table.grid("mean_base")
        neurons = [*np.ndindex(mean.shape)]
        kept = sorted(neurons, key=lambda place: -mean[place])[round(0.2 * len(neurons)) :]
        expected = {}
        for along_w, active, highest in NOTEBOOK:
            group = [
                place for place in kept if cosine[place] * along_w > 0 and mean[place] * active > 0
            ]
            group.sort(key=lambda place: abs(cosine[place]), reverse=highest)
            down = along_w == active
            factor = 1 - settings.beta_set if down else 1 + settings.beta_set
            for place in group[: round(settings.alpha * len(group))]:
                expected[place] = factor * mean[place]
        edit = planned[name]
        assert {*zip(*np.nonzero(edit.selected), strict=True)} == expected.keys()
        assert (edit.kind, len(expected)) == ("set", edit.neurons)
        for place, value in expected.items():
            assert edit.offset[place] == pytest.approx(value)
            assert edit.gain[place] == 0


def test_several_seeds_of_random_neurons(llama: LM, small: Config) -> None:
    neuron_tables = tables(llama, "strict")
    settings = replace(small.interventions, control_seeds=3)
    rows = [*plan("strict", neuron_tables, settings, prompts=5, control_prompts=4, seed=0)]
    names = [row.intervention.name for row in rows]
    assert len(set(names)) == len(names)
    controls = [
        row.intervention
        for row in rows
        if row.intervention.name.startswith("edit_probe_scale__random_neurons")
    ]
    assert [control.name[-2:] for control in controls] == ["ns", "_2", "_3"]
    assert len({control.key for control in controls}) == 3
    assert {control.neurons for control in controls} == {
        dd.edit(neuron_tables.probe, alpha=0.5, beta=0.3).neurons
    }
    assert [row.prompts for row in rows if row.intervention.control_of] == [4] * sum(
        "__" in name for name in names
    )


def test_the_rows_for_the_conclusions_alone_are_a_subset(llama: LM, small: Config) -> None:
    def rows(protocol: Protocol, neuron_tables: Tables, extent: Any) -> dict[str, str]:
        settings = replace(small.interventions, extent=extent)
        planned = plan(protocol, neuron_tables, settings, prompts=5, control_prompts=4, seed=0)
        return {row.name: row.intervention.key for row in planned}

    for protocol in get_args(Protocol):
        neuron_tables = tables(llama, protocol)
        few, all_of_them = (
            rows(protocol, neuron_tables, extent) for extent in ("conclusions", "tables")
        )
        assert few.items() < all_of_them.items()
        names = {name.partition("-")[2] for name in few}
        assert {"none", "dpo", "patch_four_groups", "edit_probe_set__random_neurons"} <= names
        assert not {name for name in names if "beta" in name or "free" in name or "@" in name}
