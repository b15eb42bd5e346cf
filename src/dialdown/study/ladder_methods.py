"""The methods of a ladder by name, and fitting them: all on the same labelled texts, or on the same
pairs.

Each leaves what it found in the folder `methods`, with what it took, and is not fitted again.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
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
from ..interventions.edit_file import EditKind
from ..interventions.explain import shuffled
from ..interventions.intervention import Intervention, untouched
from ..models.bias import holds_bias
from ..models.hooks import changing
from ..models.lm import LM
from ..models.sites import layer_norms, projections
from ..neurons.table import neuron_table
from ..progress import progress
from ..training.dpo import train_dpo
from ..training.generated_text import own_text_kl
from .context import Facts, Workspace
from .detox_methods import METHODS
from .gains import held_texts
from .notes import note_training
from .plan import usual_edit
from .sources import file_states
from .stage import RANK_ONE
from .stages import collect_training_means

FOLDER = "methods"
UNTOUCHED = "untouched"
RANDOM = "{}__random_neurons"
"""The control of a method: the same numbers, shuffled within each layer."""

Fit = Callable[..., Intervention]
Sites = Callable[[LM], object]


def anywhere(lm: LM) -> None:
    """Every model has neurons."""


@dataclass(frozen=True)
class Method:
    """A method of a ladder.

    Attributes:
        fit: its edit, or None where it tunes all weights, and how many seconds of training it took
            in all.
        pairs: whether it learns from pairs, not from labelled texts.
        settings: the sections it depends on, besides `SETTINGS`.
        sites: looks for the modules that it acts on, and refuses a model that has none.
        control: whether `RANDOM` is measured beside it.
        tunes: whether it tunes all weights.
        means: whether it needs mean activations on the first training prompts too.
    """

    fit: Callable[[Workspace], tuple[Intervention | None, float]]
    pairs: bool = False
    settings: tuple[str, ...] = ()
    sites: Sites = anywhere
    control: bool = False
    tunes: bool = False
    means: bool = False


def _from_labels(fit: Fit, sites: Sites = anywhere) -> Method:
    """A function of labelled texts."""
    draws = "seed" in inspect.signature(fit).parameters

    def fitted(work: Workspace) -> tuple[Intervention, float]:
        seed = {"seed": work.config.seed} if draws else {}
        texts, most = work.labelled, work.config.probe.max_tokens
        return fit(work.lm, texts.texts, texts.labels, max_tokens=most, **seed), 0.0

    return Method(fitted, sites=sites)


def _as_in_detox(name: str, *settings: str) -> Method:
    """A method of `detox`."""
    method = METHODS[name]

    def fitted(work: Workspace) -> tuple[Intervention, float]:
        seconds = method.make(work).get("seconds", 0.0)
        return Intervention.load(work.folder / method.file), seconds

    sites = partial(projections, site=method.site) if method.site else anywhere
    return Method(fitted, method.paired, settings, sites, control=method.trained)


def _paper_edit(kind: EditKind) -> Method:
    """The paper's edit of the four groups along the probe (METHOD §4)."""

    def fitted(work: Workspace) -> tuple[Intervention, float]:
        collect_training_means(work)
        table = neuron_table(work.lm, work.probe("strict"), work.training_means)
        return usual_edit(table, work.config.interventions, kind), 0.0

    settings = ("interventions", "evaluation", "training_prompts")
    return Method(fitted, settings=settings, means=True)


def _profs(work: Workspace) -> tuple[Intervention, float]:
    pairs = _pairs(work).pairs
    chosen, rejected = [pair.chosen for pair in pairs], [pair.rejected for pair in pairs]
    return methods.profs(work.lm, chosen, rejected), 0.0


def _tuned(name: str, *, own_kl: bool) -> Method:
    """Full DPO by the settings `dpo.*` on the pairs of the gains (METHOD §8); `own_kl` puts the KL
    on the model's own text into its loss.
    """

    def fitted(work: Workspace) -> tuple[None, float]:
        settings = replace(work.config.dpo, seed=work.config.seed)
        weight = work.config.gains.own_kl_weight
        log = train_dpo(
            work.lm,
            _pairs(work).pairs,
            settings,
            _result(work, name),
            own_kl=own_text_kl(work.lm, held_texts(work), weight) if own_kl else None,
            base=locate(work.config.model, work.config.revision)[0],
        )
        note_training(work.notes, log, settings)
        return None, log.seconds

    return Method(fitted, pairs=True, settings=("gains", "dpo"), tunes=True)


# At the neurons, and under NAME_published at outputs of linear layers or of norms.
EXPERTS: dict[str, Fit] = {"aura": methods.aura, "damp": methods.damp, "det0": methods.det0}
MAPS: dict[str, Fit] = {
    "mean_act": methods.mean_act,
    "linear_act": methods.linear_act,
    "lineas": methods.lineas,
}
LADDER: dict[str, Method] = {
    **{name: _from_labels(fit) for name, fit in (EXPERTS | MAPS).items()},
    **{
        f"{name}_published": _from_labels(partial(fit, site="published"), sites)
        for fits, sites in ((EXPERTS, anywhere), (MAPS, layer_norms))
        for name, fit in fits.items()
    },
    "edit_set": _paper_edit("set"),
    "edit_scale": _paper_edit("scale"),
    "caa": _from_labels(methods.caa),
    "ablation": _from_labels(methods.ablation),
    "labels": _as_in_detox("labels"),
    "labels_rank_one": _as_in_detox("labels_rank_one"),
    "profs": Method(_profs, pairs=True),
    "step": _as_in_detox("step", "gains"),
    "gains": _as_in_detox("gains", "gains"),
    **{name: _as_in_detox(name, "rank_one") for name in RANK_ONE},
    "dpo": _tuned("dpo", own_kl=False),
    "dpo_kl": _tuned("dpo_kl", own_kl=True),
}
"""The methods by name."""
CONTROLS = {RANDOM.format(name): name for name, method in LADDER.items() if method.control}
"""What each control is of."""
Dial = Callable[[float], AbstractContextManager[tuple[LM, Intervention]]]
"""What a method makes of the model at a strength, inside the context: the model, and the edit that
acts on it.
"""
# The settings that every method depends on.
SETTINGS = ("model", "revision", "dtype", "device", "template", "seed", "probe")


def method_of(name: str) -> Method:
    """A method by its name, or one of your own as `package.module:name` (DialdownError)."""
    if NAMED.fullmatch(name):
        return _of_your_own(name)
    if name not in LADDER:
        raise DialdownError(
            f"Unknown method {name!r}: {nearest(name, LADDER)} One of your own is "
            "package.module:name."
        )
    return LADDER[name]


def _of_your_own(name: str) -> Method:
    fit = own(name, "method", ())
    if not callable(fit):
        raise DialdownError(
            f"{name!r} is not a method, because it cannot be called: write a function of (lm, "
            "texts, labels) that returns a dialdown.Intervention."
        )

    def fitted(work: Workspace) -> tuple[Intervention, float]:
        edit = fit(work.lm, work.labelled.texts, work.labelled.labels)
        if not isinstance(edit, Intervention):
            raise DialdownError(
                f"The method {name!r} returned {type(edit).__name__}, which cannot be dialled: "
                "return a dialdown.Intervention."
            )
        edit.check(work.lm)
        return edit, 0.0

    return Method(fitted)


def needs_pairs(names: Sequence[str]) -> bool:
    """Whether a method learns from pairs (DialdownError for what is not a method)."""
    return any([method_of(name).pairs for name in names])


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
    for name in work.config.ladder.methods:
        try:
            method_of(name).sites(work.lm)
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
    start, method = time.perf_counter(), method_of(name)
    edit, trained = method.fit(work)
    folds = True
    if edit is not None:
        edit.save(_result(work, name))
        held = edit.outputs is None or edit.outputs.unheld_offset(work.lm) is None
        folds = held and (not edit.needs_bias or holds_bias(work.lm))
    data = "pairs" if method.pairs else "labels"
    units = len(_pairs(work).pairs) if method.pairs else len(work.labelled)
    # A training that was interrupted has most of its time behind it.
    seconds = max(time.perf_counter() - start, trained)
    facts = {data: units, "seconds": round(seconds, 1), "folds": folds}
    write_sealed(record, {"inputs": inputs, "told": facts})
    return facts


def _pairs(work: Workspace) -> PairSet:
    return PairSet.load(work.folder / "pairs.jsonl")


def _path(work: Workspace, name: str, ending: str) -> Path:
    return work.folder / FOLDER / f"{name.replace(':', '.')}{ending}"


def _result(work: Workspace, name: str) -> Path:
    """The file of an edit, or the folder of a tuned model."""
    return _path(work, name, "" if method_of(name).tunes else ".safetensors")


def _inputs(work: Workspace, name: str) -> str:
    config = work.ledger.settings
    settings = {key: config[key] for key in SETTINGS}
    method = method_of(name)
    settings |= {key: config[key] for key in method.settings}
    if method.pairs:
        settings["pairs"] = work.ledger.outputs("pairs")
    states = file_states({**settings, "method": name})
    return fingerprint(SCHEMA, __version__, name, settings, states)


def competing(names: Sequence[str]) -> list[str]:
    """What a ladder has: the untouched model, and each method with its random control after it."""
    listed = [UNTOUCHED]
    for name in names:
        listed += [name, RANDOM.format(name)] if method_of(name).control else [name]
    return listed


def edit_of(work: Workspace, name: str) -> Intervention:
    """The edit of a method or control; of DPO, which tunes all weights, one that does nothing."""
    if name == UNTOUCHED or _tunes(name):
        return untouched(name)
    if name in CONTROLS:
        return shuffled(edit_of(work, CONTROLS[name]), seed=work.config.seed)
    return Intervention.load(_result(work, name))


def _tunes(name: str) -> bool:
    """Whether that is a method, not a control, which tunes all weights."""
    return name in LADDER and LADDER[name].tunes


def key_of(work: Workspace, name: str) -> str:
    """Equal for two that do the same to the model."""
    return _inputs(work, name) if _tunes(name) else edit_of(work, name).key


def fitted(work: Workspace, name: str) -> Dial:
    """A method or control by its name, to be read and measured at any strength."""
    if _tunes(name):
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
