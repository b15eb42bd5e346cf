"""The stages of the paper's study: each reads what earlier ones left in the folder, and leaves
values that others can load.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict

import numpy as np
import polars as pl

from ..data.csv_tables import write_csv
from ..data.pairs import PairSet
from ..exporting.checkpoint import locate
from ..files import fingerprint
from ..models.decoding import Decoder
from ..models.lm import LM, same_weights
from ..models.protocol import Protocol
from ..neurons.activations import decode_with_means
from ..neurons.directions import Direction, random_direction, token_contrast
from ..neurons.logit_lens import Judge, direction_tokens, judged_toxic, value_vector_tokens
from ..neurons.probe import check_labels, fit_probe, probe_features
from ..neurons.subspace import mlp_facts, sign_conflicts, svd_subspace
from ..neurons.table import NeuronTable, compare
from ..progress import progress
from ..training.dpo import train_dpo
from ..training.make_pairs import (
    CandidateFiles,
    Candidates,
    candidates,
    choose_pairs,
    count_pairs,
    prompts_together,
)
from ..training.settings import PairSettings
from . import plan
from .config import PAIRS_ON_CPU
from .context import Facts, Workspace
from .folder import records
from .measure import changed, cut_prompts, measure_rows, rounded_otherwise
from .notes import note_judged, note_training
from .outputs import so_far
from .sources import file_states

# What is said of a study whose tuned model is its base.
EQUAL = (
    "The tuned model is the base model, weight for weight: nothing was tuned, so every change "
    "from tuning below is zero."
)


def find_directions(work: Workspace) -> Facts:
    """The probe and the token contrast of each protocol, and a random direction (METHOD §2)."""
    settings, seed = work.config.probe, work.config.seed
    labelled = work.labelled
    check_labels(labelled.texts, labelled.labels, labelled.groups)
    if labelled.contradictory:
        work.notes.add(
            "of the labelled texts {texts:,} stood there with both labels, and were left out",
            texts=labelled.contradictory,
        )
    work.notes.cut("texts of the probe", work.lm.encode(labelled.texts), settings.max_tokens)
    # The strict features give the norm of the residual stream, by which steering is scaled under
    # both protocols.
    protocols: tuple[Protocol, ...] = (
        ("strict", "paper") if "paper" in work.config.protocols else ("strict",)
    )
    features = probe_features(
        work.lm, labelled.texts, protocols=protocols, max_tokens=settings.max_tokens
    )
    record = {
        "texts": settings.texts,
        "max_tokens": settings.max_tokens,
        "residual_norm": float(np.linalg.norm(features["strict"], axis=1).mean()),
    }
    facts: Facts = {}
    for protocol in work.config.protocols:
        probe = fit_probe(
            work.lm,
            features[protocol],
            labelled.labels,
            groups=labelled.groups,
            protocol=protocol,
            seed=seed,
            record=record,
        )
        probe.save(work.path("direction-probe.safetensors", protocol))
        facts[protocol] = {
            name: probe.record[name] for name in ("accuracy", "auc", "train", "validation", "C")
        }
        contrast = token_contrast(work.lm, settings.positive, settings.negative, protocol=protocol)
        contrast.save(work.path("direction-contrast.safetensors", protocol))
    random_direction(work.lm, seed=seed).save(work.folder / "direction-random.safetensors")
    return facts


def find_pairs(work: Workspace) -> Facts:
    """Preference pairs made with the model itself (METHOD §8)."""
    if work.config.tuned is not None:
        return {"skipped": "a tuned model was given"}
    settings, total = _pair_settings(work), work.config.pairs.count
    size = prompts_together(work.lm, settings, on_cpu=PAIRS_ON_CPU)
    work.notes.batch(size)
    settings, left = dataclasses.replace(settings, batch_size=size), len(work.prompts.training)
    files = candidate_files(work, size)
    starts = range(0, left, size)
    sampled = {start: files.read(start) for start in starts}
    record = {"scorer": work.pair_scorer.name, **work.lm.describe()}
    replies = work.lm.template != "none"
    # Batches finish in any order; only those with none missing before them count, so the order
    # changes nothing.
    batches: list[Candidates] = []
    pairs_found = 0
    missing = [range(start, start + size) for start in starts if sampled[start] is None]
    with closing(work.do_all("pairs", sample, missing)) as done:
        while pairs_found < total and len(batches) < len(starts):
            while (batch := sampled[starts[len(batches)]]) is None:
                finished = next(done).start
                sampled[finished] = files.read(finished)
            batches.append(batch)
            pairs_found += count_pairs(batch, settings, replies=replies)
            progress("making pairs", min(pairs_found, total), total)
    pairs = choose_pairs(batches, settings, record, replies=replies)
    pairs.save(work.folder / "pairs.jsonl")
    used = pairs.record["prompts_used"]
    cut_prompts(work, "prompts of the pairs", work.prompts.training[:used])
    if pairs_found < used:
        work.notes.add(
            "{without:,} of {used:,} prompts gave no pair: no two of their continuations lie "
            "{margin:g} apart" + (", but for replies that decline" if replies else ""),
            without=used - pairs_found,
            used=used,
            margin=settings.margin,
        )
    return {
        "pairs": len(pairs.pairs),
        **{k: v for k, v in pairs.record.items() if isinstance(v, float | int)},
    }


def _pair_settings(work: Workspace) -> PairSettings:
    return dataclasses.replace(work.config.pairs, seed=work.config.seed)


def candidate_files(work: Workspace, size: int) -> CandidateFiles:
    """The continuations sampled so far, so many prompts at a time."""
    settings, config = work.config.evaluation, work.config
    # The prompts themselves, and the scorer's files: either may have changed under the same name.
    sampled_from = (
        work.prompts.training,
        settings.max_prompt_tokens,
        config.concept,
        config.probe.texts,
        config.template,
    )
    scorer = (settings.pair_scorer, file_states({"scorer": settings.pair_scorer}))
    inputs = fingerprint(
        work.ledger.inputs("probe"), work.ledger.outputs("probe"), sampled_from, scorer
    )
    sampling = dataclasses.replace(_pair_settings(work), batch_size=size)
    return CandidateFiles(work.folder / "pairs", inputs, sampling)


def sample(work: Workspace, numbers: range) -> None:
    """Sample and score a batch of training prompts by their numbers, and write it to the folder
    `pairs`.
    """
    batch = candidates(
        work.lm,
        work.prompts.training[numbers.start : numbers.stop],
        work.pair_scorer.score,
        _pair_settings(work),
        numbers.start,
        direction=work.probe(work.config.protocols[0]),
        max_prompt_tokens=work.config.evaluation.max_prompt_tokens,
    )
    candidate_files(work, len(numbers)).write(numbers.start, batch)


def tune(work: Workspace) -> Facts:
    """DPO with the KL term (METHOD §8)."""
    if work.config.tuned is not None:
        return {"skipped": "a tuned model was given", "tuned": work.tuned.describe()}
    pairs = PairSet.load(work.folder / "pairs.jsonl").pairs
    settings = dataclasses.replace(work.config.dpo, seed=work.config.seed)
    base, _, _ = locate(work.config.model, work.config.revision)
    log = train_dpo(work.lm, pairs, settings, work.folder / "tuned", base=base)
    note_training(work.notes, log, settings)
    # METHOD §8: both protocols study the one model that was trained so.
    return {**asdict(log), "kl_positions": settings.kl_positions}


def collect_means(work: Workspace) -> Facts:
    """Mean activations of the tuned model, both protocols in one decoding pass (METHOD §3)."""
    return _save_means(work, "tuned", work.tuned, work.prompts.evaluation)


def look_at_base(work: Workspace) -> Facts:
    """What needs no tuned model: the base model's mean activations (METHOD §3), and the rows of
    steering and edits, so that there is something to see before pairs and training.
    """
    facts = _save_means(work, "base", work.lm, work.prompts.evaluation)
    planned = [
        row
        for protocol in work.config.protocols
        for row in plan.tuning_free(
            protocol,
            work.base_tables(protocol),
            work.config.interventions,
            prompts=work.config.evaluation.count,
        )
    ]
    measure_rows(work, "base", planned, so_far("results.json"))
    return {**facts, "rows": len(planned), "template": work.lm.template}


def collect_training_means(work: Workspace) -> Facts:
    """Mean activations of the base model on training prompts."""
    return _save_means(
        work, "training", work.lm, work.prompts.training[: work.config.evaluation.count]
    )


def _save_means(work: Workspace, name: str, lm: LM, prompts: Sequence[str]) -> Facts:
    settings, facts = work.config.evaluation, {}
    decoder = Decoder(
        lm,
        prompts,
        share_prefixes=False,
        max_new_tokens=settings.max_new_tokens,
        max_prompt_tokens=settings.max_prompt_tokens,
        batch_size=work.batch_size,
    )
    _, means_by_protocol = decode_with_means(decoder, protocols=work.config.protocols)
    work.notes.batch(decoder.batch_size)
    work.notes.cut("prompts", work.lm.encode(prompts), settings.max_prompt_tokens)
    for protocol, means in means_by_protocol.items():
        means.save(work.path(f"means-{name}.safetensors", protocol))
        facts[f"{name}_positions_{protocol}"] = means.count
        if means.count < len(prompts) * settings.max_new_tokens:
            work.notes.add(
                f"the {name} model's means ({protocol}) are over {{positions:,}} of {{most:,}} "
                "positions, since continuations ended early",
                positions=means.count,
                most=len(prompts) * settings.max_new_tokens,
            )
    return facts


def make_tables(work: Workspace) -> Facts:
    """The neuron table of each protocol with the toxic neurons a judge finds, and of the paper's
    tables what needs the model: decoded tokens, signs along the SVD subspace (METHOD §3, §9).
    """
    config, protocols = work.config, work.config.protocols
    judge = work.token_judge
    means = {protocol: work.means(protocol) for protocol in protocols}
    probes = [work.probe(protocol) for protocol in protocols]
    tables: list[NeuronTable] = []
    for protocol, probe in zip(protocols, probes, strict=True):
        table = compare(work.lm, work.tuned, probe, *means[protocol])
        count = min(config.interventions.toxic_neurons, table.size)
        judged = judged_toxic(work.lm, table, judge.judge, count=count)
        # A judge that could not answer, or finds nothing, gives no set of toxic neurons to patch.
        tables.append(table if judge.missing or not judged.any() else table.with_judged(judged))
        tables[-1].to_parquet(work.path("neurons.parquet", protocol))
    note_judged(work.notes, judge.missing, tables, config.interventions.toxic_neurons)
    # The published 128 value vectors, of a model that has as many.
    most = min(128, tables[0].size)
    spaces = {
        protocol: svd_subspace(work.lm, probe, neurons=most, protocol=protocol)
        for protocol, probe in zip(protocols, probes, strict=True)
    }
    _decode(work, tables, spaces, judge.judge)
    facts: Facts = {
        table.protocol: {name: int(mask.sum()) for name, mask in table.groups().items()}
        for table in tables
    }
    facts["mlp"] = mlp_facts(work.lm)
    facts["sign_conflicts"] = {
        protocol: sign_conflicts(work.lm, work.tuned, space, *means[protocol])
        for protocol, space in spaces.items()
    }
    if same_weights(work.lm, work.tuned):
        facts["equal"] = EQUAL
    return {
        **facts,
        "token_judge": {
            "name": judge.name,
            "missing": judge.missing,
            "caveat": judge.caveat,
            "record": dict(judge.record),
        },
    }


def _decode(
    work: Workspace,
    tables: Sequence[NeuronTable],
    spaces: Mapping[Protocol, Sequence[Direction]],
    judge: Judge,
) -> None:
    """Write what directions and extreme value vectors say: tables 1, 14, 15 and 16."""
    protocols = [table.protocol for table in tables]
    directions = [find(protocol) for find in (work.probe, work.contrast) for protocol in protocols]
    frames = {"table-1-directions": direction_tokens(work.lm, directions, judge=judge)}
    for stem, opposed in (("table-14-toxic-vectors", False), ("table-15-antitoxic-vectors", True)):
        frames[stem] = pl.concat(
            [value_vector_tokens(work.lm, table, opposed=opposed, judge=judge) for table in tables]
        )
    frames["table-16-svd-directions"] = pl.concat(
        [direction_tokens(work.lm, space, signs=(1,), judge=judge) for space in spaces.values()]
    )
    write_csv(frames, work.folder / "tables")


def evaluate(work: Workspace) -> Facts:
    """Every intervention and control under each protocol (METHOD §4 to §6)."""
    config = work.config
    planned = [
        row
        for protocol in config.protocols
        for row in plan.plan(
            protocol,
            work.tables(protocol),
            config.interventions,
            prompts=config.evaluation.count,
            control_prompts=min(config.evaluation.control_count, config.evaluation.count),
            seed=config.seed,
            model=config.model,
        )
    ]
    facts: Facts = {**work.judging, "rows": len(planned)}
    cut_prompts(work, "prompts", work.prompts.evaluation)
    rows = measure_rows(work, "evaluate", planned, "results.json")
    base = next(row for row in rows if row.intervention == "none")
    before = records(work.folder).get("base", {}).get("told", {}).get("batch_size")
    used = [size for size in (work.notes.batch_size, before) if size]
    facts["rounding"] = changed(base.units.texts, rounded_otherwise(work, used))
    for row in planned:
        if row.intervention.control_of is None and row.intervention.kind != "none":
            row.intervention.save(work.folder / "interventions" / f"{row.name}.safetensors")
    return facts
