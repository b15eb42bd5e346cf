"""The methods of a ladder by name, and fitting them: all on the same labelled texts, or on the same
pairs.

Each leaves what it found in the folder `methods`, with what it took, and is not fitted again.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import __version__, methods
from ..data.pairs import PairSet
from ..errors import DialdownError, nearest
from ..evaluation.plugin import NAMED, own
from ..exporting.checkpoint import locate
from ..files import SCHEMA, fingerprint, read_sealed, write_sealed
from ..interventions.explain import shuffled
from ..interventions.intervention import Intervention, untouched
from ..models.bias import holds_bias
from ..models.hooks import changing
from ..models.lm import LM
from ..progress import progress
from ..training.dpo import train_dpo
from ..training.generated_text import own_text_kl
from .context import Facts, Workspace
from .detox import METHODS
from .gains import held_texts
from .notes import note_training
from .preflight import METHOD_SITES
from .sources import file_states
from .stage import RANK_ONE

FOLDER = "methods"
UNTOUCHED = "untouched"
RANDOM = "{}__random_neurons"
"""The control of gains and of rank one: the same numbers, shuffled within each layer."""
CONTROLLED = ("gains", *RANK_ONE)
OF_CHANNELS: dict[str, Callable[..., Intervention]] = {
    "aura": methods.aura,
    "damp": methods.damp,
    "det0": methods.det0,
    "mean_act": methods.mean_act,
    "linear_act": methods.linear_act,
    "lineas": methods.lineas,
}
"""At the neurons, and under NAME_published at outputs of linear layers or norms."""
LABELLED: dict[str, Callable[..., Intervention]] = {
    **OF_CHANNELS,
    **{f"{name}_published": partial(fit, site="published") for name, fit in OF_CHANNELS.items()},
    "caa": methods.caa,
    "ablation": methods.ablation,
    "labels_rank_one": methods.labels_rank_one,
}
OF_PAIRS: dict[str, Callable[..., Intervention]] = {"profs": methods.profs}
DPO = {"dpo": False, "dpo_kl": True}
"""Full DPO by the settings `dpo.*`; whether the KL on the model's own text is in its loss."""
PAIRED = {
    **dict.fromkeys(OF_PAIRS, ()),
    **dict.fromkeys(("step", "gains"), ("gains",)),
    **dict.fromkeys(RANK_ONE, ("rank_one",)),
    **dict.fromkeys(DPO, ("gains", "dpo")),
}
"""Methods that learn from pairs, and the settings each depends on besides `SETTINGS`."""
NAMES = (*LABELLED, "labels", *PAIRED)
Dial = Callable[[float], AbstractContextManager[tuple[LM, Intervention]]]
"""What a method makes of the model at a strength, inside the context: the model, and the edit that
acts on it.
"""
# The settings that every method depends on.
SETTINGS = ("model", "revision", "dtype", "device", "template", "seed", "probe")


def check_methods(names: Sequence[str]) -> None:
    """Refuse what is not a method, before anything is fitted (DialdownError)."""
    for name in names:
        if NAMED.fullmatch(name):
            _own(name)
        elif name not in NAMES:
            raise DialdownError(
                f"Unknown method {name!r}: {nearest(name, NAMES)} One of your own is "
                "package.module:name."
            )


def needs_pairs(names: Sequence[str]) -> bool:
    """Whether a method learns from pairs."""
    return any(name in PAIRED for name in names)


def _own(name: str) -> Callable[..., Any]:
    fit = own(name, "method", ())
    if not callable(fit):
        raise DialdownError(
            f"{name!r} is not a method, because it cannot be called: write a function of (lm, "
            "texts, labels) that returns a dialdown.Intervention."
        )
    return fit  # type: ignore[no-any-return]


def fit_methods(work: Workspace) -> Facts:
    """Fit what is not fitted yet; what each took, by its name."""
    names = _at_hand(work)
    if needs_pairs(names):
        _check_unseen(work)
    facts = {}
    for done, name in enumerate(names):
        progress(f"fitting methods, {name}", done, len(names))
        facts[name] = _fitted(work, name)
    return {"methods": facts}


def _at_hand(work: Workspace) -> list[str]:
    """The methods asked for; of the default ones, those that this architecture can have, since
    what is asked for by name and cannot be had was refused before (`preflight`).
    """
    names = [*work.config.ladder.methods]
    for name in METHOD_SITES.keys() & {*names}:
        try:
            METHOD_SITES[name](work.lm)
        except DialdownError as error:
            work.notes.add(f"{name} is left out: {error}")
            names.remove(name)
    return names


def _check_unseen(work: Workspace) -> None:
    """Refuse to judge on prompts that the pairs have used (DialdownError)."""
    left = len(work.prompts.training) - _pairs(work).record["prompts_used"]
    if len(work.unseen) > left:
        raise DialdownError(
            f"The pairs leave {left} prompts unseen, and {len(work.unseen)} are to be judged "
            f"(ladder.prompts): lower it to {left}, or set training_prompts to a source with more."
        )


def _fitted(work: Workspace, name: str) -> dict[str, Any]:
    record = _path(work, name, ".json")
    inputs = _inputs(work, name)
    kept = read_sealed(record)
    if kept is not None and kept["inputs"] == inputs and _result(work, name).exists():
        facts: dict[str, Any] = kept["told"]
        return facts
    start = time.perf_counter()
    if name in DPO:
        trained = _tune(work, name)
        folds = True
    else:
        edit, trained = _fit(work, name)
        edit.save(_result(work, name))
        held = edit.outputs is None or edit.outputs.unheld_offset(work.lm) is None
        folds = held and (not edit.needs_bias or holds_bias(work.lm))
    data = "pairs" if name in PAIRED else "labels"
    units = len(_pairs(work).pairs) if name in PAIRED else len(work.labelled)
    # A training that was interrupted has most of its time behind it.
    seconds = max(time.perf_counter() - start, trained)
    facts = {data: units, "seconds": round(seconds, 1), "folds": folds}
    write_sealed(record, {"inputs": inputs, "told": facts})
    return facts


def _fit(work: Workspace, name: str) -> tuple[Intervention, float]:
    """A method's edit, and how many seconds of training it took in all."""
    if name in METHODS:
        facts = METHODS[name].make(work)
        return Intervention.load(work.folder / METHODS[name].file), facts.get("seconds", 0.0)
    if name in OF_PAIRS:
        pairs = _pairs(work).pairs
        texts = [pair.chosen for pair in pairs], [pair.rejected for pair in pairs]
        return OF_PAIRS[name](work.lm, *texts), 0.0
    labelled = work.labelled.texts, work.labelled.labels
    if name in LABELLED:
        most = work.config.probe.max_tokens
        draws = "seed" in inspect.signature(LABELLED[name]).parameters
        seed = {"seed": work.config.seed} if draws else {}
        edit = LABELLED[name](work.lm, *labelled, max_tokens=most, **seed)
        return edit, 0.0
    edit = _own(name)(work.lm, *labelled)
    if not isinstance(edit, Intervention):
        raise DialdownError(
            f"The method {name!r} returned {type(edit).__name__}, which cannot be dialled: return "
            "a dialdown.Intervention."
        )
    edit.check(work.lm)
    return edit, 0.0


def _tune(work: Workspace, name: str) -> float:
    """DPO on the pairs of the gains (METHOD §8), and the seconds of its training."""
    settings = replace(work.config.dpo, seed=work.config.seed)
    own_kl = None
    if DPO[name]:
        own_kl = own_text_kl(work.lm, held_texts(work), work.config.gains.own_kl_weight)
    log = train_dpo(
        work.lm,
        _pairs(work).pairs,
        settings,
        _result(work, name),
        own_kl=own_kl,
        base=locate(work.config.model, work.config.revision)[0],
    )
    note_training(work.notes, log, settings)
    return log.seconds


def _pairs(work: Workspace) -> PairSet:
    return PairSet.load(work.folder / "pairs.jsonl")


def _path(work: Workspace, name: str, ending: str) -> Path:
    return work.folder / FOLDER / f"{name.replace(':', '.')}{ending}"


def _result(work: Workspace, name: str) -> Path:
    """The file of an edit, or the folder of a tuned model."""
    return _path(work, name, "" if name in DPO else ".safetensors")


def _inputs(work: Workspace, name: str) -> str:
    config = work.ledger.settings
    settings = {key: config[key] for key in SETTINGS}
    if name in PAIRED:
        settings |= {key: config[key] for key in PAIRED[name]}
        settings["pairs"] = work.ledger.outputs("pairs")
    states = file_states({**settings, "method": name})
    return fingerprint(SCHEMA, __version__, name, settings, states)


def competing(methods: Sequence[str]) -> list[str]:
    """What a ladder has: the untouched model, and each method with its random control after it."""
    listed = [UNTOUCHED]
    for name in methods:
        listed += [name, RANDOM.format(name)] if name in CONTROLLED else [name]
    return listed


def edit_of(work: Workspace, name: str) -> Intervention:
    """The edit of a method or control; of DPO, which tunes all weights, one that does nothing."""
    if name == UNTOUCHED or name in DPO:
        return untouched(name)
    for controlled in CONTROLLED:
        if name == RANDOM.format(controlled):
            return shuffled(edit_of(work, controlled), seed=work.config.seed)
    return Intervention.load(_result(work, name))


def key_of(work: Workspace, name: str) -> str:
    """Equal for two that do the same to the model."""
    return _inputs(work, name) if name in DPO else edit_of(work, name).key


def fitted(work: Workspace, name: str) -> Dial:
    """A method or control by its name, to be read and measured at any strength."""
    if name in DPO:
        return _interpolated(work, name)
    edit = edit_of(work, name)
    return lambda strength: nullcontext((work.lm, edit.at(strength)))


def _interpolated(work: Workspace, name: str) -> Dial:
    """A method that tuned all weights, dialled by interpolating them with the base model's."""
    tuned = work.tuned_model(f"{FOLDER}/{name}")
    # Parameters and not the state dict, which would name a tied embedding twice.
    base_weights = dict(work.lm.model.named_parameters())
    tuned_weights = {
        place: weight.detach().clone() for place, weight in tuned.model.named_parameters()
    }

    @contextmanager
    def dial(strength: float) -> Iterator[tuple[LM, Intervention]]:
        # Marked as changing, or continuations of another strength would be taken for this one's.
        with changing(tuned), torch.no_grad():
            for place, weight in tuned.model.named_parameters():
                weight.copy_(base_weights[place].detach().lerp(tuned_weights[place], strength))
            yield tuned, untouched()

    return dial
