"""Which rows a study measures, neuron by neuron."""

from __future__ import annotations

import numpy as np
import pytest

import dialdown as dd
from dialdown.models import LM
from dialdown.study import load_config
from dialdown.study.plan import Tables, plan
from helpers.tables import compared, direction, means

# The groups as signs of cosine and mean activation, and whether the notebook takes the highest
# cosines of a group or the lowest.
NOTEBOOK = [(1, 1, True), (1, -1, False), (-1, 1, False), (-1, -1, True)]


def test_gpt2s_edits_are_those_of_its_notebook(gpt2: LM) -> None:
    """Half of each group, without the fifth of all neurons of highest mean activation: TP and AN
    from the highest cosines and down, AP and TN from the lowest and up (METHOD §4).
    """
    flags = {"interventions.toxic_neurons": 5}
    settings = load_config(preset="gpt2-medium", flags=flags).interventions
    probe = direction(residual_norm=1.0)
    along, contrast, noise = (
        dd.neuron_table(gpt2, direction(seed), means("paper")) for seed in (0, 1, 2)
    )
    tables = Tables(compared(gpt2, "paper", probe), contrast, noise, probe, direction(2))
    rows = plan("paper", tables, settings, prompts=1, control_prompts=1, seed=0)
    planned = {row.intervention.name: row.intervention for row in rows}
    for name, table in (("edit_probe_set", along), ("edit_probe_free_set", contrast)):
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
