"""Which interventions a study makes, under which protocol, and the controls beside each (METHOD §4, §5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_args

from .config import InterventionSettings
from .directions import Direction
from .edits import EditKind, edit, edit_controls, patch, patch_control, steer, steering_alpha
from .interventions import Intervention, untouched
from .models import Protocol
from .neurons import NeuronTable

# Patches of METHOD §4: stable name, neurons.
PATCHES = (
    ("patch_TP", "TP"),
    ("patch_TP_AN", "TP+AN"),
    ("patch_TP_AN_TN", "TP+AN+TN"),
    ("patch_four_groups", "four_groups"),
    ("patch_all_increasing", "increasing"),
)


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
    """One row to be measured; `tuned` says that it is the tuned model itself."""

    intervention: Intervention
    protocol: Protocol
    tuned: bool = False

    @property
    def name(self) -> str:
        """Unique in a study."""
        return f"{self.protocol}-{self.intervention.name}"


def plan(protocol: Protocol, tables: Tables, settings: InterventionSettings, *, seed: int) -> Iterator[Planned]:
    """All rows of one protocol, references first, each intervention followed by its controls."""
    yield Planned(untouched(), protocol)
    yield Planned(untouched("dpo"), protocol, tuned=True)
    for one in [
        *_steering(tables, settings),
        *_patches(tables.probe, settings, seed),
        *_edits(tables, settings, seed),
    ]:
        yield Planned(one, protocol)


def _steering(tables: Tables, settings: InterventionSettings) -> Iterator[Intervention]:
    alpha = steering_alpha(tables.direction, settings.steering_strength)
    steered = steer(tables.direction, alpha)
    yield steered
    # The random direction has the probe's norm, so the same alpha moves the residual as far.
    control = steer(tables.noise, alpha, name=f"{steered.name}__random_direction")
    yield replace(control, control_of=steered.name)


def _patches(table: NeuronTable, settings: InterventionSettings, seed: int) -> Iterator[Intervention]:
    aligned = (f"patch_{settings.toxic_neurons}", f"toxic_{settings.toxic_neurons}")
    for patched in (
        *(patch(table, which, name=name) for name, which in (aligned, *PATCHES)),
        patch(table, "four_groups", kind="shift"),
    ):
        yield patched
        yield patch_control(table, patched, seed=seed)


def _edits(tables: Tables, settings: InterventionSettings, seed: int) -> Iterator[Intervention]:
    for prefix, table in (("edit_probe", tables.probe), ("edit_probe_free", tables.contrast)):
        # The authors' code has `set` only (METHOD §5); under `paper` the other two show what its positions alone make of them.
        for kind in get_args(EditKind):
            edited = edit(
                table,
                alpha=settings.alpha,
                beta=settings.beta(kind),
                kind=kind,
                ordering=settings.ordering,
                drop_top=settings.drop_top,
                name=f"{prefix}_{kind}",
            )
            yield edited
            yield from edit_controls(table, tables.random, edited, seed=seed)
