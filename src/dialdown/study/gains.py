"""Two ways to one number per neuron, as stages: gains that are trained, and edits that are searched
for without training.

    pairs -> gains                                           (`gains`: DPO's loss, METHOD §8)
    pairs, direction, means -> attributions -> search        (`search`: nothing is trained)

Gains are an ordinary `scale` intervention; what is searched is one too, or a `shift` or `set` where
the model's MLPs can have a bias. `study` puts both on one front with everything else, and `detox`
exports them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..data.csv_tables import write_csv
from ..files import fingerprint, kept_arrays, write_arrays
from ..interventions.intervention import Intervention
from ..models.bias import holds_bias
from ..neurons.directions import Direction, logit_lens
from ..neurons.table import NeuronTable, neuron_table
from ..search.least_squares import least_squares_scales
from ..search.search import (
    Materials,
    Objective,
    SearchSettings,
    build,
    remaining,
    run_trial,
    search_result,
)
from ..training.attribution import Contrast, Score, attribution, contrast_means, mean_difference
from ..training.fisher import fisher_information, natural_gradient, own_text, preference_gradient
from ..training.gains import (
    FILE,
    by_group,
    importance,
    keep_top,
    relative_change,
    shuffled,
    train_gains,
)
from ..training.make_pairs import PairSet
from .context import Workspace
from .notes import note_training

TOP = 20
CONTRAST = "contrast.safetensors"
DIFFERENCE = "direction-difference.safetensors"
LEAST = "least-squares-{}.safetensors"
PREFERENCE = "preference"
GAINS_FROM = "gains-{}.safetensors"
# Added to the seed where draws should be others than those of the prices.
OTHERS = 1000


def tune_gains(work: Workspace) -> dict[str, Any]:
    """Neuron gains on the study's pairs, and what they say about the neurons (METHOD §8)."""
    pairs = PairSet.load(work.folder / "pairs.jsonl").pairs
    settings = replace(work.config.gains, seed=work.config.seed)
    prices = gain_prices(work) if settings.optimizer == "natural" else None
    texts = held_texts(work) if settings.own_kl_weight > 0 else []
    _, log = train_gains(
        work.lm,
        pairs,
        settings,
        work.folder / "gains",
        information=prices,
        texts=texts,
        progress=work.progress,
    )
    note_training(work.notes, log, settings)
    return asdict(log)


def gain_prices(work: Workspace) -> NDArray[np.float64]:
    """What every gain costs on text of the model's own: its Fisher information."""

    def price() -> NDArray[np.float64]:
        seed = work.config.seed
        texts = own_text(work.lm, seed=seed, progress=work.progress)
        return fisher_information(work.lm, texts, seed=seed, progress=work.progress)

    return _kept(work, "prices", price)


def held_texts(work: Workspace) -> list[list[int]]:
    """Text of the model's own on which training holds the gains near it: other draws than those of
    the prices.
    """

    def write() -> NDArray[np.int64]:
        seed = work.config.seed + OTHERS
        return np.array(own_text(work.lm, texts=96, tokens=64, seed=seed, progress=work.progress))

    texts = _kept(work, "texts", write)
    return [[int(token) for token in text] for text in texts]


def _kept(work: Workspace, kind: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """What was made from the model once, kept because training goes on only from the very same, and
    no two machines round alike.
    """
    path = work.folder / GAINS_FROM.format(kind)
    ours = {
        "base": work.lm.describe(),
        "weights": work.lm.weights_fingerprint(),
        "seed": work.config.seed,
    }
    kept = kept_arrays(path, kind)
    if kept is not None and {name: kept[1].get(name) for name in ours} == ours:
        return kept[0][kind]
    made = make()
    write_arrays(path, kind, {kind: made}, ours)
    return made


def trained_gains(work: Workspace) -> Intervention:
    """The gains that `tune_gains` left."""
    return Intervention.load(work.folder / "gains" / FILE)


def explain(work: Workspace, edit: Intervention) -> dict[str, Any]:
    """Read an edit as an explanation: which groups move, whether with the four-group rule, and what
    the first neurons write.
    """
    base = work.training_means
    table = neuron_table(work.lm, work.probe("strict"), base)
    moved = importance(work.lm, edit, base)
    groups = by_group(table, edit, moved)
    write_csv(
        {"gains-by-group": groups, "gains-top-neurons": _top(work, table, edit, moved)},
        work.folder / "tables",
    )
    return {"groups": groups.to_dicts()}


def _top(work: Workspace, table: NeuronTable, edit: Intervention, moved: Any) -> pl.DataFrame:
    """The neurons whose change moves the residual stream most, and the tokens they write."""
    gain = 1 + relative_change(table, edit)
    names = table.arrow["group"].to_pylist()
    rows = []
    for place in (-moved).ravel().argsort(kind="stable")[:TOP].tolist():
        layer, neuron = divmod(place, table.shape[1])
        vector = work.lm.view.layers[layer].value_vectors()[neuron].double().cpu().numpy()
        # What a neuron writes while active on average; its negative where that is below zero.
        written = vector if table.grid("mean_base")[layer, neuron] > 0 else -vector
        tokens = logit_lens(work.lm, written, k=8)
        rows.append(
            {
                "layer": layer,
                "neuron": neuron,
                "group": names[place],
                "gain": float(gain[layer, neuron]),
                "cosine": float(table.grid("cosine")[layer, neuron]),
                "moved": float(moved[layer, neuron]),
                "writes": " ".join(token.strip() for token, _ in tokens),
            }
        )
    return pl.DataFrame(rows)


def gain_sweep(work: Workspace) -> list[Intervention]:
    """The trained gains on the front: at several strengths, on random neurons instead, and with
    only the first neurons kept.
    """
    gains, settings = trained_gains(work), work.config.front
    moved = importance(work.lm, gains, work.training_means)
    dialled = [
        replace(gains.at(strength), name=f"gains@{strength:g}") for strength in settings.gains
    ]
    control = replace(
        shuffled(gains, seed=work.config.seed), name="gains_random_neurons@1", control_of=None
    )
    kept = [
        replace(keep_top(gains, moved, round(share * moved.size)), name=f"gains_kept@{share:g}")
        for share in settings.kept
    ]
    return [*dialled, control, *kept]


def search_edits(work: Workspace) -> dict[str, Any]:
    """Look for the training-free edits of least toxicity at each price."""
    settings = _search_settings(work)
    _prepare(work)
    folder = _search_folder(work)
    missing = remaining(folder, settings)
    total = settings.trials
    work.progress("searching", total - missing, total)
    with closing(work.do_all(run_one_trial, range(missing))) as finished:
        for _ in finished:
            found = search_result(folder, settings)
            work.progress(f"searching, {found.best}", min(len(found.trials), total), total)
    found = search_result(folder, settings)
    return {"trials": len(found.trials), "front": [asdict(trial) for trial in found.front]}


def _search_settings(work: Workspace) -> SearchSettings:
    return replace(work.config.search, seed=work.config.seed)


def _made(work: Workspace) -> Path:
    """Where what a search is built from lies; what was made from other inputs lies elsewhere."""
    ours = work.config.evaluation
    return (
        work.folder
        / "search"
        / fingerprint(
            work.ledger.inputs("pairs"),
            ours.pairs,
            ours.pairs_count,
            ours.window,
            ours.neutral_tokens,
        )
    )


def _search_folder(work: Workspace) -> Path:
    settings = asdict(_search_settings(work))
    # More trials go on with the same search; another budget is another search.
    del settings["trials"]
    return _made(work) / fingerprint(settings)


def _prepare(work: Workspace) -> None:
    """Leave in the folder what every trial is built from: the contrast, its direction, and edits of
    least change.
    """
    if (_made(work) / LEAST.format(PREFERENCE)).exists():
        return
    pairs = PairSet.load(work.folder / "pairs.jsonl").pairs
    contrast = contrast_means(work.lm, pairs, progress=work.progress)
    contrast.save(_made(work) / CONTRAST)
    mean_difference(work.lm, contrast).save(_made(work) / DIFFERENCE)
    for name, table in _tables(work).items():
        # The search dials it; at a small share of the residual stream's norm no gain is cut off at
        # 0.
        options: Any = {
            "target": 1e-3 * contrast.record["residual_norm"],
            "name": f"least_squares_{name}",
            "progress": work.progress,
        }
        least = least_squares_scales(work.lm, table, contrast, work.neutral_windows, **options)
        least.save(_made(work) / LEAST.format(name))
    worth = preference_gradient(work.lm, pairs, progress=work.progress)
    # At a small KL, again so that none is cut off.
    steepest = natural_gradient(work.lm, worth, gain_prices(work), kl=1e-5)
    steepest.save(_made(work) / LEAST.format(PREFERENCE))


def _tables(work: Workspace) -> dict[str, NeuronTable]:
    base = work.training_means
    difference = Direction.load(_made(work) / DIFFERENCE)
    return {
        one.name: neuron_table(work.lm, one, base)
        for one in (work.probe("strict"), difference, work.contrast("strict"))
    }


def materials(work: Workspace) -> Materials:
    """What the search builds its edits from: probe, mean difference and token contrast, every score
    along each, least squares along each, and the natural gradient of the preference, which is least
    squares too, of another effect at another price.
    """
    tables, contrast = _tables(work), Contrast.load(_made(work) / CONTRAST)
    return Materials(
        tables,
        {
            (name, score): attribution(table, score, contrast, lm=work.lm)
            for name, table in tables.items()
            for score in get_args(Score)
        },
        {
            name: Intervention.load(_made(work) / LEAST.format(name))
            for name in [PREFERENCE, *tables]
        },
        kinds=("scale", "shift", "set") if holds_bias(work.lm) else ("scale",),
    )


def run_one_trial(work: Workspace, number: int) -> None:
    """One trial of the search, in whichever process, unless another command has done the last one
    meanwhile; its number is only counted.
    """
    folder, settings = _search_folder(work), _search_settings(work)
    if not remaining(folder, settings):
        return
    if work.objective is None:
        work.objective = _objective(work, work.search_prompts)
    run_trial(folder, work.objective, settings)


def _objective(work: Workspace, prompts: Sequence[str]) -> Objective:
    ours = work.config.evaluation
    return Objective(
        work.lm,
        prompts,
        work.pair_scorer,
        work.neutral_windows,
        materials(work),
        max_new_tokens=ours.max_new_tokens,
        max_prompt_tokens=ours.max_prompt_tokens,
        batch_size=ours.batch_size,
    )


def found_edits(work: Workspace, count: int) -> list[Intervention]:
    """Edits spread along the front of the search, the least toxic first; named `searched@1`, the
    mildest, and on.

    Raises:
        DialdownError: the search found none within its budget (the nearest is named).
    """
    finalists = search_result(_search_folder(work), _search_settings(work)).finalists(count)
    stuff = materials(work)
    places = range(len(finalists), 0, -1)
    return [
        replace(build(trial.parameters, stuff), name=f"searched@{place}")
        for place, trial in zip(places, finalists, strict=True)
    ]


def found_any(work: Workspace) -> bool:
    """Whether the search found an edit within its budget."""
    return bool(search_result(_search_folder(work), _search_settings(work)).front)


def judged_again(work: Workspace, edits: Sequence[Intervention]) -> list[float]:
    """Mean toxicity of edits on training prompts that neither the pairs nor the search saw, by the
    search's scorer.
    """
    prompts = work.choosing_prompts
    objective = _objective(work, prompts)
    loose = SearchSettings(prompts=len(prompts), first_prompts=len(prompts), max_kl=1e9)
    measured = [objective.measure(one, loose).toxicity for one in edits]
    return [math.inf if one is None else one for one in measured]
