"""The paper's tables of one study, gathered under their file names (METHOD §9): see
`tables.TITLES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import polars as pl

from ..models.lm import LM, Protocol
from ..neurons.activations import NeuronMeans
from ..neurons.directions import Direction
from ..neurons.statistics import svd_subspace
from ..neurons.table import NeuronTable
from ..study.config import Config
from . import tables

Frames = dict[str, pl.DataFrame]


def of_neurons(
    lm: LM,
    tuned: LM,
    found: Sequence[NeuronTable],
    probes: Sequence[Direction],
    contrasts: Sequence[Direction],
    means: Mapping[Protocol, tuple[NeuronMeans, NeuronMeans]],
    judge: tables.Judge,
) -> Frames:
    """The tables that need the models or the neurons: 1, 4 to 8, 13 to 18, section 5.1, appendix G,
    figure 1's numbers.

    Args:
        lm: the base model.
        tuned: the tuned model.
        found: compared neuron tables, one per protocol.
        probes: the probe of each protocol, in the same order.
        contrasts: the token contrast of each protocol, likewise.
        means: base and tuned mean activations by protocol.
        judge: says which logit-lens tokens are of the concept.

    Raises:
        DialdownError: the values belong to different models.
    """
    # The published 128 value vectors, of a model that has as many.
    most = min(128, found[0].arrow.num_rows)
    spaces = [
        svd_subspace(lm, probe, neurons=most, protocol=table.protocol)
        for probe, table in zip(probes, found, strict=True)
    ]
    of_table: dict[str, Callable[[NeuronTable], pl.DataFrame]] = {
        "table-4-group-roles": tables.table_4_group_roles,
        "table-5-group-shares": tables.table_5_group_shares,
        "table-6-value-vectors": lambda table: tables.table_6_value_vectors(lm, table, judge=judge),
        "table-13-negative-means": tables.table_13_negative_means,
        "table-14-toxic-vectors": lambda table: tables.table_14_toxic_vectors(
            lm, table, judge=judge
        ),
        "table-15-antitoxic-vectors": lambda table: tables.table_15_antitoxic_vectors(
            lm, table, judge=judge
        ),
        "table-17-correlations": tables.table_17_correlations,
        "table-18-reducing-share": tables.table_18_reducing_share,
        "section-5-1-shifts": tables.section_5_1_shifts,
        "figure-1-opposing-effects": tables.figure_1_opposing_effects,
    }
    return {
        "table-1-directions": tables.table_1_directions(lm, [*probes, *contrasts], judge=judge),
        "table-8-mlp": tables.table_8_mlp(lm),
        "table-16-svd-directions": pl.concat(
            [tables.table_16_svd_directions(lm, space, judge=judge) for space in spaces]
        ),
        "appendix-g-sign-conflicts": pl.concat(
            [
                tables.appendix_g_sign_conflicts(lm, tuned, space, *means[table.protocol])
                for space, table in zip(spaces, found, strict=True)
            ]
        ),
        **{name: pl.concat([make(table) for table in found]) for name, make in of_table.items()},
    }


def of_rows(
    rows: tables.Rows, front: tables.Rows, config: Config, probes: Mapping[str, Mapping[str, Any]]
) -> Frames:
    """The tables of what was measured and how: 2, 3, 7, 9 to 12, 19.

    Args:
        rows: those of results.json.
        front: those of front.json, measured on prompts of their own; empty where there is none.
        config: the study's settings.
        probes: by protocol, what the probe stage found.
    """
    model = config.model
    steered = {
        row["protocol"]: row["alpha"] for row in rows if row["intervention"] == "steer_probe"
    }
    settings = asdict(config.dpo) if config.tuned is None else {}
    facts = {
        protocol: {**fact, "alpha": steered.get(protocol)} for protocol, fact in probes.items()
    }
    return {
        "table-2-interventions": tables.table_2_interventions(rows, model=model),
        "table-3-toxic-neurons": tables.table_3_toxic_neurons(rows, model=model),
        "table-7-seed-words": tables.table_7_seed_words(
            config.probe.positive, config.probe.negative
        ),
        "table-9-dpo": tables.table_9_dpo(
            {name: value for name, value in settings.items() if name != "seed"}
        ),
        "table-10-kl-weight": tables.table_10_kl_weight(settings, model=model),
        "table-11-probe": tables.table_11_probe(facts, model=model),
        "table-12-steering": tables.table_12_steering([*rows, *front], model=model),
        "table-19-more-interventions": tables.table_19_more_interventions(
            [*rows, *front], model=model
        ),
    }
