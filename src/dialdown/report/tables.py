"""The paper's tables for the model at hand, each one frame and one CSV file (METHOD §9).

    for name, frame in all_tables(run).items(): ...

A function's name starts with the number its table has in the paper; `TITLES` says what each shows.
The published figures of the paper's four models stand in columns of their own, beside the `paper`
protocol only, which all of them follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import zip_longest
from math import nan
from typing import Any, get_args

import polars as pl

from ..data.csv_tables import read_csv, write_csv
from ..evaluation.bootstrap import ChangeSign, Estimate, agreement
from ..evaluation.row import METRICS, REFUSAL, Row
from ..interventions.edit_file import EditKind, Ordering
from ..study import published
from .evidence import Evidence
from .names import AGREEMENT, TITLES, control_label, is_aligned_patch
from .neuron_tables import (
    Frames,
    appendix_g_sign_conflicts,
    beside,
    figure_of,
    frame_of,
    neuron_tables,
    stated_columns,
    table_6_value_vectors,
    table_8_mlp,
)
from .run import Run

Rows = Sequence[Row]

_PUBLISHED = ("toxicity", "log_ppl", "f1")
# The tables whose tokens only the model itself can tell, and those of the gains: the stages
# `neurons` and `gains` write them.
AS_WRITTEN = (
    "table-1-directions",
    "table-14-toxic-vectors",
    "table-15-antitoxic-vectors",
    "table-16-svd-directions",
    "gains-by-group",
    "gains-top-neurons",
)
# What the paired difference of an intervention and its control says of the intervention.
READS: dict[ChangeSign, str] = {
    "less": "intervention lower",
    "more": "intervention higher",
    "not told apart": "not distinguishable",
}


def all_tables(run: Run) -> Frames:
    """Every table that this run's folder has the numbers for, in the paper's order."""
    compared = [table for table in run.tables.values() if table.compared]
    frames = {**row_tables(run), **written_tables(run), **neuron_tables(compared)}
    facts = run.stage("neurons")
    if "mlp" in facts:
        frames["table-8-mlp"] = table_8_mlp(facts["mlp"])
    if "sign_conflicts" in facts:
        frames["appendix-g-sign-conflicts"] = appendix_g_sign_conflicts(facts["sign_conflicts"])
    if len({judge for row in run.results for judge in row.toxicity_by}) > 1:
        frames["scorers"] = scorer_table(run)
    if len(scored := _scored(run)) > 1:
        frames[AGREEMENT] = agreement(scored)
    return {stem: frames[stem] for stem in TITLES if len(frames.get(stem, ()))}


def write_tables(run: Run, frames: Frames) -> None:
    """Write tables into the folder `tables`, beside those that the stages wrote."""
    computed = {stem: frame for stem, frame in frames.items() if stem not in AS_WRITTEN}
    write_csv(computed, run.folder / "tables")


def _scored(run: Run) -> dict[str, list[float]]:
    """What each scorer says of the untouched model's continuations: one text a prompt, so that they
    are independent.
    """
    if not run.protocols:
        return {}
    measured = run.measured("none", run.protocols[0])
    return {
        name.removeprefix("toxicity/"): scores
        for name, scores in (measured.values if measured else {}).items()
        if name.startswith("toxicity/")
    }


def scorer_table(run: Run) -> pl.DataFrame:
    """What each scorer says of the same continuations."""
    judges = list(dict.fromkeys(judge for row in run.results for judge in row.toxicity_by))
    rows = [row for name in run.names() for row in run.both(name)]
    cells = [
        (row.intervention, row.protocol, *_parts(map(row.toxicity_by.get, judges))) for row in rows
    ]
    # A scorer's name may hold anything, so it takes its place last.
    places = {f"scorer{place}": judge for place, judge in enumerate(judges)}
    frame = frame_of(cells, f"intervention:text protocol:text {_columns(places)}")
    ends = ("", "_low", "_high", "_n")
    return frame.rename(
        {f"{place}{end}": f"{judge}{end}" for place, judge in places.items() for end in ends}
    )


def control_table(run: Run, metric: str) -> pl.DataFrame:
    """Each intervention beside each of its controls: the paired change of a metric to the untouched
    model, and the paired difference of intervention and control on the control's prompts.
    """
    cells = []
    for row in (row for name in run.names() for row in run.both(name)):
        evidence = Evidence(run, row.protocol)
        for name, control in run.controls(row.intervention, row.protocol).items():
            gap = control.control_minus_main.get(metric)
            if gap is not None and metric in row.change and metric in control.change:
                lead = gap.reversed()
                says = READS[evidence.change_sign(lead, metric)]
                changes = _parts([row.change[metric], control.change[metric], lead])
                cells.append((row.intervention, row.protocol, control_label(name), *changes, says))
    columns = _columns(("change", "control_change", "difference"))
    return frame_of(cells, f"intervention:text protocol:text control:text {columns} reading:text")


def row_tables(run: Run) -> Frames:
    """The tables of what was measured and how: 2, 3, 7, 9 to 12, 19."""
    rows = run.results
    further = [*rows, *run.front]
    steered = {row.protocol: row.alpha for row in rows if row.intervention == "steer_probe"}
    probes = run.stage("probe")
    facts: dict[str, dict[str, Any]] = {
        protocol: {**probes.get(protocol, {}), "alpha": steered.get(protocol)}
        for protocol in run.settings.protocols
    }
    settings = asdict(run.settings.dpo) if run.settings.tuned is None else {}
    settings_but_seed = {name: value for name, value in settings.items() if name != "seed"}
    words = run.settings.probe
    return {
        "table-2-interventions": table_2_interventions(rows),
        "table-3-toxic-neurons": table_3_toxic_neurons(rows),
        "table-7-seed-words": table_7_seed_words(words.positive, words.negative),
        "table-9-dpo": table_9_dpo(settings_but_seed),
        "table-10-kl-weight": table_10_kl_weight(settings),
        "table-11-probe": table_11_probe(facts),
        "table-12-steering": table_12_steering(further),
        "table-19-more-interventions": table_19_more_interventions(further),
        "controls-toxicity": control_table(run, "toxicity"),
        "controls-log-ppl": control_table(run, "log_ppl"),
    }


def written_tables(run: Run) -> Frames:
    """The tables that a stage wrote, and of 14 and 15 the first neurons as table 6."""
    paths = {stem: run.folder / "tables" / f"{stem}.csv" for stem in AS_WRITTEN}
    frames = {stem: read_csv(path) for stem, path in paths.items() if path.exists()}
    vectors = [frames[stem] for stem in AS_WRITTEN[1:3] if stem in frames]
    if len(vectors) == 2:
        frames["table-6-value-vectors"] = table_6_value_vectors(*vectors)
    return frames


def table_2_interventions(rows: Rows) -> pl.DataFrame:
    """Table 2: every intervention and control under both protocols, all metrics with 95 %
    intervals.

    Published toxicity, log-perplexity and F1 stand beside the row of that strength
    (`published.row`).
    """
    cells = []
    columns = "intervention:text protocol:text control_of:text kind:text alpha beta neurons:int"
    # Only of prompts in a chat template.
    refusal = [REFUSAL] if any(REFUSAL in row.metrics for row in rows) else []
    metrics = [*METRICS, *refusal]
    for row in rows:
        facts = [getattr(row, column.partition(":")[0]) for column in columns.split()]
        values = _parts(map(row.metrics.get, metrics))
        # Of steering, table 2 has one strength for each model; the others are in table 12.
        steered = row.family == "steer_probe" and row.strength
        stated = "" if row.control or steered else row.protocol
        cells.append((*facts, *values, *beside(stated, partial(_published_row, row))))
    return frame_of(cells, f"{columns} {_columns(metrics)} {stated_columns(*_PUBLISHED)}")


def table_3_toxic_neurons(rows: Rows) -> pl.DataFrame:
    """Table 3: (toxicity untouched - patched) / (untouched - DPO), for the judged and the most
    aligned neurons.

    `share` is null where DPO did not reduce toxicity or was not measured.
    """
    means = {
        (row.intervention, row.protocol): row.metrics["toxicity"].mean
        for row in rows
        if "toxicity" in row.metrics
    }
    named = ("neurons", "share")
    published_as = {"patch_toxic_neurons": "judged", "patch_256": "top"}
    cells = []
    for row in rows:
        if is_aligned_patch(row) and (row.intervention, row.protocol) in means:
            base, tuned = (means.get((name, row.protocol), nan) for name in ("none", "dpo"))
            patched = means[row.intervention, row.protocol]
            share = (base - patched) / (base - tuned) if base > tuned else None
            which = published_as.get(row.intervention, "")
            stated = beside(row.protocol, figure_of("toxic_neurons", which, keys=named))
            cells.append((row.protocol, row.intervention, row.neurons, share, *stated))
    columns = "protocol:text intervention:text neurons:int share"
    return frame_of(cells, f"{columns} {stated_columns('neurons:int', 'share')}")


def table_7_seed_words(positive: Sequence[str], negative: Sequence[str]) -> pl.DataFrame:
    """Table 7: the words on either side of the token contrast, each beside the published word of
    its place.
    """
    stated = published.figures()["seed_words"]
    cells = [
        (side, place, *pair)
        for side, words in (("toxic", positive), ("non_toxic", negative))
        for place, pair in enumerate(zip_longest(words, stated[side]), 1)
    ]
    return frame_of(cells, "side:text place:int word:text published:text")


def table_9_dpo(settings: Mapping[str, Any]) -> pl.DataFrame:
    """Table 9: the fields of `DPOSettings` as run beside the published ones, as text; the KL weight
    is in table 10.

    `note` says what a published number means in the authors' program, where the table alone would
    mislead.
    """
    stated, notes = (published.figures()[name] for name in ("dpo", "dpo_notes"))
    cells = [
        (name, _as_text(settings.get(name)), _as_text(stated.get(name)), notes.get(name))
        for name in dict.fromkeys([*settings, *stated])
        if name != "kl_weight"
    ]
    return frame_of(cells, "setting:text value:text published:text note:text")


def table_10_kl_weight(settings: Mapping[str, Any]) -> pl.DataFrame:
    """Table 10: gamma as run, from the fields of `DPOSettings`."""
    cells = ("γ", settings.get("kl_weight"), *beside("paper", figure_of("kl_weight")))
    return frame_of([cells], f"weight:text value {stated_columns('')}")


def table_11_probe(facts: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    """Table 11: `accuracy` and `auc` of each protocol's probe on held-out texts, and the steering
    strength `alpha`, whose unit is the probe's own.

    Args:
        facts: protocol to any of these three.
    """
    quantities: tuple[published.Quantity, ...] = ("probe_accuracy", "steering_alpha")
    cells = [
        (
            protocol,
            *map(fact.get, ("accuracy", "auc", "alpha")),
            *beside(
                protocol,
                lambda model: [published.figure(model, quantity) for quantity in quantities],
            ),
        )
        for protocol, fact in facts.items()
    ]
    columns = "protocol:text accuracy auc alpha"
    return frame_of(cells, f"{columns} {stated_columns('accuracy', 'alpha')}")


def table_12_steering(rows: Rows) -> pl.DataFrame:
    """Table 12: every row of steering along the probe, by alpha.

    The unit of alpha is the probe's own, so the published strengths, two of each model, have rows
    of their own, whose `intervention` is null.
    """
    steered = [row for row in rows if row.family == "steer_probe" and not row.control]
    dropped = stated_columns(*_PUBLISHED).split()
    # `strict` first, as everywhere.
    frame = table_2_interventions(steered).drop(dropped)
    frame = frame.sort("protocol", "alpha", descending=[True, False])
    cells = [("paper", *beside("paper", partial(_published_steering, place))) for place in (0, 1)]
    columns = f"protocol:text {stated_columns('alpha', *_PUBLISHED)}"
    return pl.concat(
        [frame, frame_of(cells if "paper" in frame["protocol"] else [], columns)], how="diagonal"
    )


def _published_steering(place: int, model: str) -> Sequence[float]:
    figure = published.figure(model, "steering")[place]
    return [figure[name] for name in ("alpha", *_PUBLISHED)]


def table_19_more_interventions(rows: Rows) -> pl.DataFrame:
    """Table 19: patching the increasing neurons, and edits along the probe of other fractions and
    orders.
    """
    kinds = get_args(EditKind)
    orders = {f"edit_probe_{order}_{kind}" for order in get_args(Ordering) for kind in kinds}
    families = {"patch_all_increasing", "edit_probe_alpha_scale", *orders}
    further = [
        row
        for row in rows
        if row.family in families
        or (row.family == "edit_probe_set" and row.strength.startswith("a"))
    ]
    return table_2_interventions(further)


def _columns(names: Iterable[str]) -> str:
    return " ".join(f"{name} {name}_low {name}_high {name}_n:int" for name in names)


def _parts(estimates: Iterable[Estimate | None]) -> list[float | None]:
    """The cells of `_columns`."""
    ends = ("mean", "low", "high", "n")
    return [getattr(estimate, end, None) for estimate in estimates for end in ends]


def _published_row(row: Row, model: str) -> Sequence[float | None]:
    figures = published.row(model, row.family, alpha=row.alpha, beta=row.beta) or {}
    return [figures.get(metric) for metric in _PUBLISHED]


def _as_text(value: object) -> str | None:
    if value is None:
        return None
    return f"{value:g}" if isinstance(value, int | float) else str(value)
