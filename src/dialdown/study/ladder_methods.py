"""The methods of a ladder by name: what each learns from, and how."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from .. import methods
from ..data.pairs import PairSet
from ..errors import DialdownError, nearest
from ..evaluation.plugin import NAMED, own
from ..exporting.checkpoint import locate
from ..interventions.edit_file import EditKind
from ..interventions.intervention import Intervention
from ..models.lm import LM
from ..models.sites import layer_norms, projections
from ..neurons.table import neuron_table
from ..training.dpo import train_dpo
from ..training.generated_text import own_text_kl
from .context import Workspace
from .detox_methods import METHODS
from .gains import gain_prices, held_texts
from .notes import note_training
from .plan import usual_edit
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
        trained: whether it is trained, which takes longest.
        tunes: whether it tunes all weights.
        needs: what is made for it that other methods learn from as well.
    """

    fit: Callable[[Workspace], tuple[Intervention | None, float]]
    pairs: bool = False
    settings: tuple[str, ...] = ()
    sites: Sites = anywhere
    control: bool = False
    trained: bool = False
    tunes: bool = False
    needs: tuple[Callable[[Workspace], object], ...] = ()

    @property
    def means(self) -> bool:
        """Whether it learns from mean activations on the first training prompts too."""
        return collect_training_means in self.needs


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
    shared = {"gains": (gain_prices, held_texts), "step": (gain_prices,), "labels": (gain_prices,)}
    needs = shared.get(name, (held_texts,))
    trained = method.trained
    return Method(fitted, method.paired, settings, sites, trained, trained, needs=needs)


def _paper_edit(kind: EditKind) -> Method:
    """The paper's edit of the four groups along the probe (METHOD §4)."""

    def fitted(work: Workspace) -> tuple[Intervention, float]:
        table = neuron_table(work.lm, work.probe("strict"), work.training_means)
        return usual_edit(table, work.config.interventions, kind), 0.0

    settings = ("interventions", "evaluation", "training_prompts")
    # A constant among other neurons is none of their means.
    control = kind == "scale"
    return Method(fitted, settings=settings, needs=(collect_training_means,), control=control)


def _profs(work: Workspace) -> tuple[Intervention, float]:
    pairs = pairs_of(work).pairs
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
            pairs_of(work).pairs,
            settings,
            result_of(work, name),
            own_kl=own_text_kl(work.lm, held_texts(work), weight) if own_kl else None,
            base=locate(work.config.model, work.config.revision)[0],
        )
        note_training(work.notes, log, settings)
        return None, log.seconds

    needs = (held_texts,) if own_kl else ()
    sections = ("gains", "dpo")
    return Method(fitted, pairs=True, settings=sections, trained=True, tunes=True, needs=needs)


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


def pairs_of(work: Workspace) -> PairSet:
    """The pairs of a ladder."""
    return PairSet.load(work.folder / "pairs.jsonl")


def path_of(work: Workspace, name: str, ending: str) -> Path:
    """A file of a method."""
    return work.folder / FOLDER / f"{name.replace(':', '.')}{ending}"


def result_of(work: Workspace, name: str) -> Path:
    """The file of an edit, or the folder of a tuned model."""
    return path_of(work, name, "" if method_of(name).tunes else ".safetensors")
