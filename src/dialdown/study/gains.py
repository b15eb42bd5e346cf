"""One number per neuron, as stages of a study: gains that are trained, and one step of the natural
gradient, which is not (METHOD §8).

    pairs -> gains            DPO's loss, over a training
    pairs -> step             its first step alone: what each gain is worth over what it costs
    labelled texts -> labels  such a step without pairs

All are ordinary `scale` interventions. `front` puts them beside everything else, and `detox` dials
and exports them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from .. import __version__
from ..data.csv_tables import write_csv
from ..data.pairs import PairSet
from ..files import kept_arrays, write_arrays
from ..interventions.explain import by_group, importance, keep_top, relative_change, shuffled
from ..interventions.intervention import Intervention
from ..methods import labels_step
from ..neurons.logit_lens import logit_lens
from ..neurons.table import NeuronTable, neuron_table
from ..training.fisher import fisher_information, natural_gradient, preference_gradient
from ..training.gains import train_gains
from ..training.generated_text import own_text
from ..training.settings import GAINS_FILE
from .context import Workspace
from .notes import note_training
from .stage import LABELS, STEP

TOP = 20
# What the step costs at strength 1 by the diagonal alone, in nats per token; several times that is
# measured.
STEP_KL = 0.01
TRAINED = f"gains/{GAINS_FILE}"
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
        work.lm, pairs, settings, work.folder / "gains", information=prices, texts=texts
    )
    note_training(work.notes, log, settings)
    return asdict(log)


def gain_prices(work: Workspace) -> NDArray[np.float64]:
    """What every gain costs on text of the model's own: its Fisher information."""

    def price() -> NDArray[np.float64]:
        seed = work.config.seed
        texts = own_text(work.lm, seed=seed)
        return fisher_information(work.lm, texts, seed=seed)

    return _kept(work, "prices", price)


def held_texts(work: Workspace) -> list[list[int]]:
    """Text of the model's own that training holds the gains near: other draws than the prices'."""

    def write() -> NDArray[np.int64]:
        seed = work.config.seed + OTHERS
        return np.array(own_text(work.lm, texts=96, tokens=64, seed=seed))

    texts = _kept(work, "texts", write)
    return [[int(token) for token in text] for text in texts]


def _kept(work: Workspace, kind: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """What was made from the model once and is kept, as no two machines round alike."""
    path = work.folder / GAINS_FROM.format(kind)
    origin = {
        "base": work.lm.describe(),
        "weights": work.lm.weights_fingerprint(),
        "seed": work.config.seed,
        "dialdown": __version__,
    }
    kept = kept_arrays(path, kind)
    if kept is not None and {name: kept[1].get(name) for name in origin} == origin:
        return kept[0][kind]
    start = time.perf_counter()
    array = make()
    seconds = round(time.perf_counter() - start, 2)
    write_arrays(path, kind, {kind: array}, {**origin, "seconds": seconds})
    return array


def seconds_of(work: Workspace, make: Callable[[Workspace], object]) -> float:
    """How long it took to make what is kept; 0 of what is not."""
    kinds: dict[object, str] = {gain_prices: "prices", held_texts: "texts"}
    kind = kinds.get(make, "")
    kept = kept_arrays(work.folder / GAINS_FROM.format(kind), kind)
    return 0.0 if kept is None else float(kept[1].get("seconds", 0.0))


def take_step(work: Workspace) -> dict[str, Any]:
    """The gains that the natural gradient of the pairs' margin asks for; nothing is trained."""
    pairs = PairSet.load(work.folder / "pairs.jsonl").pairs
    worth = preference_gradient(work.lm, pairs)
    step = natural_gradient(
        work.lm, worth, gain_prices(work), kl=STEP_KL, damping=work.config.gains.damping
    )
    step.save(work.folder / STEP)
    return {name: step.record[name] for name in ("kl", "margin", "clipped")}


def take_step_from_labels(work: Workspace) -> dict[str, Any]:
    """Such gains from the labelled texts of the probe alone (METHOD §10)."""
    step = labels_step(
        work.lm,
        work.labelled.texts,
        work.labelled.labels,
        information=gain_prices(work),
        kl=STEP_KL,
        max_tokens=work.config.probe.max_tokens,
    )
    step.save(work.folder / LABELS)
    return {name: step.record[name] for name in ("kl", "clipped")}


def explain(work: Workspace, edit: Intervention) -> dict[str, Any]:
    """Which groups an edit moves, whether with the four-group rule, and what its neurons write."""
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
    names = table.group_names()
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
    """Gains on the front: dialled, on random neurons, the first neurons' alone; the one step."""
    gains, settings = Intervention.load(work.folder / TRAINED), work.config.front
    moved = importance(work.lm, gains, work.training_means)
    dialled = [gains.at(strength).called("gains", f"{strength:g}") for strength in settings.gains]
    control = shuffled(gains, seed=work.config.seed).called("gains_random_neurons", "1")
    kept = [
        keep_top(gains, moved, round(share * moved.size)).called("gains_kept", f"{share:g}")
        for share in settings.kept
    ]
    step = Intervention.load(work.folder / STEP)
    steps = [step.at(strength).called("step", f"{strength:g}") for strength in settings.step]
    # On the front it is a family of its own, and a control of none.
    return [*dialled, replace(control, control_of=None), *kept, *steps]
