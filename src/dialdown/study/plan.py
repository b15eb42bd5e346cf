"""Which interventions a study makes, under which protocol, and the controls beside each (METHOD §4,
§5).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, get_args

from ..interventions.edit_file import EditKind, Kind, Ordering
from ..interventions.intervention import Intervention, untouched
from ..interventions.paper import edit, edit_controls, patch, patch_control, steer, steering_alpha
from ..models.protocol import Protocol
from ..neurons.directions import Direction
from ..neurons.table import NeuronTable
from . import published
from .config import Config, Family, FrontSettings, InterventionSettings

# Patches of METHOD §4: stable name, neurons.
PATCHES = (
    ("patch_TP", "TP"),
    ("patch_TP_AN", "TP+AN"),
    ("patch_TP_AN_TN", "TP+AN+TN"),
    ("patch_four_groups", "four_groups"),
    ("patch_all_increasing", "increasing"),
)

# What the conclusions rest on; β reversed and β = 0, the groups
# one by one, and the contrast edits are for the tables.
CONCLUDING = (
    "steer_probe",
    "patch_toxic_neurons",
    "patch_four_groups",
    "patch_four_groups_shift",
    *(f"edit_probe_{kind}" for kind in get_args(EditKind)),
)

# The orders of choosing the fraction that is edited, with the fraction of most active neurons left
# out first; GPT-2's notebook leaves out a fifth.
ORDERINGS: tuple[tuple[Ordering, float], ...] = (
    ("cosine", 0.0),
    ("activation", 0.0),
    ("notebook", 0.2),
)
FURTHER_KINDS: tuple[EditKind, ...] = ("set", "scale")
# Table 12 goes up to 5/3 of the strength of table 2.
STEERING_TIMES = (0.5, 1.5)


@dataclass(frozen=True)
class Tables:
    """The neuron tables of one protocol.

    Attributes:
        probe: base and tuned model along the probe.
        contrast: the base model along the token contrast.
        random: the base model along a random direction.
        direction: the probe.
        noise: the random direction, of the probe's norm.
    """

    probe: NeuronTable
    contrast: NeuronTable
    random: NeuronTable
    direction: Direction
    noise: Direction


@dataclass(frozen=True)
class Planned:
    """One row to be measured.

    Attributes:
        intervention: what to apply.
        protocol: how.
        prompts: on how many of the evaluation prompts, the first ones.
        model: the folder of a tuned model that is measured itself; None for the base model.
    """

    intervention: Intervention
    protocol: Protocol
    prompts: int
    model: str | None = None

    @property
    def name(self) -> str:
        """Unique in a study."""
        return f"{self.protocol}-{self.intervention.name}"


def plan(
    protocol: Protocol,
    tables: Tables,
    settings: InterventionSettings,
    *,
    prompts: int,
    control_prompts: int,
    seed: int,
    model: str = "",
) -> Iterator[Planned]:
    """All rows of one protocol, references first, each intervention followed by its controls.

    `control_prompts` are for controls and what is beside the claims; `model` is the base model's
    hub id, for the strengths that the paper states of it.
    """
    yield Planned(untouched(), protocol, prompts)
    yield Planned(untouched("dpo"), protocol, prompts, model="tuned")
    for intervention in _usual(protocol, tables, settings, settings.families, seed):
        # What METHOD §5 does not have under a protocol is not a claim of it, so fewer prompts will
        # do there, as for controls.
        aside = intervention.control or not _as_published(protocol, intervention.kind)
        yield Planned(intervention, protocol, control_prompts if aside else prompts)
    if protocol == "paper" and settings.extent == "tables":
        further: dict[Family, Iterable[Intervention]] = {
            "steering": _published_steering(tables, settings, model),
            "patches": (),
            "edits": _published_edits(tables, settings),
        }
        for intervention in chain.from_iterable(further[family] for family in settings.families):
            yield Planned(intervention, protocol, control_prompts)


def tuning_free(
    protocol: Protocol, tables: Tables, settings: InterventionSettings, *, prompts: int
) -> Iterator[Planned]:
    """The rows of `plan` that need no tuned model, without controls: the first there are."""
    yield Planned(untouched(), protocol, prompts)
    families = [family for family in settings.families if family != "patches"]
    for intervention in _usual(protocol, tables, settings, families):
        if not intervention.control and _as_published(protocol, intervention.kind):
            yield Planned(intervention, protocol, prompts)


def _usual(
    protocol: Protocol,
    tables: Tables,
    settings: InterventionSettings,
    families: Iterable[Family],
    seed: int = 0,
) -> Iterator[Intervention]:
    """Each intervention of the families at its usual strength, followed by its controls."""
    made_by: dict[Family, Iterator[Intervention]] = {
        "steering": _steering(tables, settings),
        "patches": _patches(protocol, tables.probe, settings, seed),
        "edits": _edits(protocol, tables, settings, seed),
    }
    for intervention in chain.from_iterable(made_by[family] for family in families):
        if settings.extent == "tables" or _concludes(intervention, tables.probe, settings):
            yield intervention


def _concludes(
    intervention: Intervention, table: NeuronTable, settings: InterventionSettings
) -> bool:
    """Whether the paper's conclusions rest on a row; the others fill its tables."""
    main = intervention.control_of or intervention.name
    # The paper's toxic neurons are those that a judge finds among the most aligned ones, which
    # stand for them where it finds none.
    aligned = () if "judged" in table.columns else (f"patch_{settings.toxic_neurons}",)
    concluding = {*CONCLUDING, *aligned}
    random = not intervention.control or intervention.control.startswith("random")
    return main in concluding and random


def _steering(tables: Tables, settings: InterventionSettings) -> Iterator[Intervention]:
    alpha = steering_alpha(tables.direction, settings.steering_strength)
    steered = steer(tables.direction, alpha).called("steer_probe")
    yield steered
    # The random direction has the probe's norm, so the same alpha moves the residual as far.
    yield steer(tables.noise, alpha).control_for(steered, "random_direction")


def _published_steering(
    tables: Tables, settings: InterventionSettings, model: str
) -> Iterator[Intervention]:
    """Table 12: the alphas published for the model; else strengths around the study's own."""
    stated = published.figure(model, "steering")
    for alpha in [float(figure["alpha"]) for figure in stated or ()]:
        yield steer(tables.direction, alpha).called("steer_probe", f"a{alpha:g}")
    for times in () if stated else STEERING_TIMES:
        strength = times * settings.steering_strength
        steered = steer(tables.direction, steering_alpha(tables.direction, strength))
        yield steered.called("steer_probe", f"{strength:g}")


def _published_edits(tables: Tables, settings: InterventionSettings) -> Iterator[Intervention]:
    """Tables 2 and 19: the published strengths and orders that `_edits` does not have."""
    # By the text and by the notebooks alike, the first order goes by the cosine.
    by_cosine: Ordering = "cosine" if settings.ordering == "activation" else settings.ordering
    families: dict[str, tuple[NeuronTable, Ordering, float]] = {
        "edit_probe_set": (tables.probe, by_cosine, settings.drop_top),
        "edit_probe_activation_set": (tables.probe, "activation", 0.0),
        "edit_probe_free_set": (tables.contrast, by_cosine, settings.drop_top),
    }
    for family, (table, ordering, drop_top) in families.items():
        for alpha, beta in published.STRENGTHS[: len(published.EDITS[family])]:
            same = (settings.alpha, settings.beta_set, settings.ordering) == (alpha, beta, ordering)
            if same and family != "edit_probe_activation_set":
                continue
            chosen = {"alpha": alpha, "beta": beta, "ordering": ordering, "drop_top": drop_top}
            edited = usual_edit(table, settings, "set", **chosen)
            yield edited.called(family, f"a{alpha:g}_b{beta:g}")


def _patches(
    protocol: Protocol, table: NeuronTable, settings: InterventionSettings, seed: int
) -> Iterator[Intervention]:
    named = [(f"patch_{settings.toxic_neurons}", f"toxic_{settings.toxic_neurons}"), *PATCHES]
    if "judged" in table.columns:
        named.insert(0, ("patch_toxic_neurons", "judged"))
    # The toxic neurons and all four groups carry the claims; what lies between is bracketed by
    # their controls.
    controlled = {"patch_toxic_neurons", f"patch_{settings.toxic_neurons}", "patch_four_groups"}
    for name, which in named:
        patched = patch(table, which).called(name)
        yield patched
        if name in controlled:
            yield from _patch_controls(table, patched, settings, seed)
    shifted = patch(table, "four_groups", kind="shift").called("patch_four_groups_shift")
    yield shifted
    if _as_published(protocol, "shift"):
        yield from _patch_controls(table, shifted, settings, seed)


def usual_edit(
    table: NeuronTable, settings: InterventionSettings, kind: EditKind, **otherwise: Any
) -> Intervention:
    """An edit as the settings have it, but for what is said otherwise."""
    usual = {
        "alpha": settings.alpha,
        "beta": settings.beta(kind),
        "ordering": settings.ordering,
        "drop_top": settings.drop_top,
    }
    return edit(table, kind=kind, **{**usual, **otherwise})


def _edits(
    protocol: Protocol, tables: Tables, settings: InterventionSettings, seed: int
) -> Iterator[Intervention]:
    for prefix, table in (("edit_probe", tables.probe), ("edit_probe_free", tables.contrast)):
        for kind in get_args(EditKind):
            edited = usual_edit(table, settings, kind).called(f"{prefix}_{kind}")
            yield edited
            if _as_published(protocol, kind):
                for number in range(settings.control_seeds):
                    controls = edit_controls(table, tables.random, edited, seed=seed + number)
                    # Of the controls, the random neurons alone depend on the seed.
                    yield from controls if number == 0 else [_numbered(controls[0], number)]


def _patch_controls(
    table: NeuronTable, patched: Intervention, settings: InterventionSettings, seed: int
) -> Iterator[Intervention]:
    for number in range(settings.control_seeds):
        control = patch_control(table, patched, seed=seed + number)
        yield _numbered(control, number) if number else control


def _numbered(control: Intervention, number: int) -> Intervention:
    place = f"_{number + 1}"
    return replace(control, name=control.name + place, control=control.control + place)


def _as_published(protocol: Protocol, kind: Kind) -> bool:
    """METHOD §5: the authors' code has `set` only. The other kinds under `paper` show what its
    positions make of them; whether they are about the concept is asked where they are meant to be
    used, under `strict`.
    """
    return protocol == "strict" or kind not in ("shift", "scale")


def has_front(config: Config) -> bool:
    """Whether a front is asked for, which is of the strict protocol."""
    return config.front.count > 0 and "strict" in config.protocols


def front(
    tables: Tables,
    settings: FrontSettings,
    fixed: InterventionSettings,
    models: Sequence[str],
    *,
    further: Sequence[Intervention] = (),
    seed: int,
) -> Iterator[Planned]:
    """Every family at several strengths, under `strict`: what each costs at each effect.

    A name is `FAMILY@STRENGTH`. The random controls of a family are a family of their own. `fixed`
    is what is not varied, `models` the folders of the tuned model along its training, `further`
    what other stages found, such as neuron gains.
    """
    yield Planned(untouched(), "strict", settings.count)
    for model in models:
        step = model.rpartition("/")[2]
        tuned = untouched().called("dpo", "" if model == "tuned" else step)
        yield Planned(tuned, "strict", settings.count, model)
    varied = [
        *_steering_sweep(tables, settings),
        *_patch_sweep(tables.probe, settings),
        *_edit_sweep(tables, settings, fixed, seed),
        *further,
    ]
    for intervention in varied:
        yield Planned(intervention, "strict", settings.count)


def _steering_sweep(tables: Tables, settings: FrontSettings) -> Iterator[Intervention]:
    for strength in settings.steering:
        alpha = steering_alpha(tables.direction, strength)
        yield steer(tables.direction, alpha).called("steer_probe", f"{strength:g}")
        yield steer(tables.noise, alpha).called("steer_random", f"{strength:g}")


def _patch_sweep(table: NeuronTable, settings: FrontSettings) -> Iterator[Intervention]:
    shift = patch(table, "four_groups", kind="shift")
    for factor in settings.patch:
        dialled = replace(shift, offset=factor * shift.offset, beta=factor)
        yield dialled.called("patch_four_groups_shift", f"{factor:g}")


def _edit_sweep(
    tables: Tables, settings: FrontSettings, fixed: InterventionSettings, seed: int
) -> Iterator[Intervention]:
    betas = {"set": settings.set, "shift": settings.shift, "scale": settings.scale}
    strengths = [(kind, beta) for kind in get_args(EditKind) for beta in betas[kind]]
    for prefix, table in (("edit_probe", tables.probe), ("edit_probe_free", tables.contrast)):
        for kind, beta in strengths:
            edited = usual_edit(table, fixed, kind, beta=beta).called(
                f"{prefix}_{kind}", f"{beta:g}"
            )
            yield edited
            if prefix == "edit_probe":
                control = edit_controls(table, tables.random, edited, seed=seed)[0]
                control = control.called(f"edit_random_neurons_{kind}", f"{beta:g}")
                yield replace(control, control_of=None)
    # Tables 12 and 19: the fraction that is edited, and the other orders of choosing it.
    for alpha in settings.alphas:
        edited = usual_edit(tables.probe, fixed, "scale", alpha=alpha)
        yield edited.called("edit_probe_alpha_scale", f"{alpha:g}")
    for ordering, drop_top in ORDERINGS:
        for kind in FURTHER_KINDS:
            edited = usual_edit(tables.probe, fixed, kind, ordering=ordering, drop_top=drop_top)
            yield edited.called(f"edit_probe_{ordering}_{kind}")
