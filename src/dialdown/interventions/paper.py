"""The interventions of the paper, built from a neuron table, and the controls beside them (METHOD
§4, §5).

Patching sets neurons to the tuned model's mean activation. Editing needs no tuned model: it moves
the mean activations of the four groups by a factor, down where a neuron writes the concept (TP, AN)
and up where it writes against it (AP, TN).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import DialdownError, nearest
from ..neurons.directions import Direction
from ..neurons.table import Mask, NeuronTable
from .edit_file import BETA_DIALS, EditKind, Kind, Ordering
from .intervention import Intervention

# METHOD §4: the groups whose contribution to the concept shrinks with the activation, and those
# where it grows.
GROUPS_DOWN, GROUPS_UP = ("TP", "AN"), ("AP", "TN")


def patch(table: NeuronTable, which: str, *, kind: Literal["set", "shift"] = "set") -> Intervention:
    """Activation patching: chosen neurons get the tuned model's mean activation (METHOD §4).

    Args:
        table: from `dd.compare`.
        which: `TP`, `TP+AN`, `TP+AN+TN`, `four_groups`, `increasing` or `toxic_256` (see
            `NeuronTable.select`).
        kind: `set` m_i to mean_tuned, as published; `shift` m_i by mean_tuned - mean_base, which
            keeps what varies.

    Raises:
        DialdownError: an unknown name, a table without a tuned model, or kind `scale`.
    """
    if kind not in ("set", "shift"):
        raise DialdownError(
            f"A patch of kind {kind!r} would divide by mean activations near zero: pass kind='set' "
            "or kind='shift'."
        )
    name = f"patch_{which.replace('+', '_')}{'_shift' if kind == 'shift' else ''}"
    return _patched(table, name, kind, table.select(which))


def edit(
    table: NeuronTable,
    *,
    alpha: float,
    beta: float,
    kind: EditKind = "scale",
    ordering: Ordering = "cosine",
    drop_top: float = 0.0,
    name: str | None = None,
) -> Intervention:
    """Activation editing without a tuned model: a fraction alpha of each group, moved by a factor 1
    -+ beta (METHOD §4).

    Args:
        table: from `dd.neuron_table` or `dd.compare`; the condition on Delta is not used.
        alpha: the fraction of each group, 0 to 1.
        beta: the strength; TP and AN go to (1 - beta) of their activation, AP and TN to (1 + beta).
        kind: `set` to that multiple of the mean, `shift` by the difference, `scale` by the factor.
        ordering: which fraction: `cosine` highest `|c_i|`; `activation` lowest `|mean|`;
            `notebook` highest `|c_i|` for TP and AN and lowest for AP and TN, as in the authors'
            notebooks.
        drop_top: first leave out this fraction of all neurons, those of highest mean activation
            (GPT-2's notebook: 0.2).
        name: the name its results carry.

    Raises:
        DialdownError: alpha or drop_top outside 0 to 1, or an unknown kind or ordering.
    """
    for what, value in (("alpha", alpha), ("drop_top", drop_top)):
        if not 0 <= value <= 1:
            raise DialdownError(f"{what}={value} is not a fraction: pass a number from 0 to 1.")
    _check_number("beta", beta)
    for given, known in ((kind, get_args(EditKind)), (ordering, get_args(Ordering))):
        if given not in known:
            raise DialdownError(f"Unknown edit option {given!r}: {nearest(given, known)}")
    name = name or f"edit_{table.record['direction']['name']}_{kind}"
    sign = _sign(_choose(table, alpha, ordering, drop_top))
    result = _with_values(table, name, kind, sign, beta)
    record = {**result.record, "ordering": ordering, "drop_top": drop_top}
    return replace(result, alpha=alpha, beta=beta, record=record)


def steer(direction: Direction, alpha: float, *, name: str | None = None) -> Intervention:
    """Steering: subtract alpha * W, as the direction is (not normalised), from the final-layer
    residual stream at every position (METHOD §4). `name` is the name its results carry.
    """
    _check_number("alpha", alpha)
    return Intervention(
        name or f"steer_{direction.name}",
        "steer",
        vector=-alpha * direction.vector,
        alpha=float(alpha),
        record={"direction": {"name": direction.name, "site": direction.site, **direction.record}},
    )


def _check_number(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise DialdownError(f"{name}={value} cannot be applied: pass a finite number.")


def steering_alpha(direction: Direction, strength: float) -> float:
    """The alpha at which steering moves x^L by `strength` times the norm of a text's mean x^L,
    whatever the norm of W.

    A published alpha holds for one W only: the norm of a probe depends on how it was regularised.
    """
    norm = direction.record.get("residual_norm")
    if norm is None:
        raise DialdownError(
            f"The direction {direction.name!r} does not record the norm of the residual stream: "
            "pass a probe, or an alpha to dd.steer."
        )
    return float(strength * norm / np.linalg.norm(direction.vector))


def patch_control(table: NeuronTable, patched: Intervention, *, seed: int) -> Intervention:
    """The same patch, dialled as it is, on random neurons, as many in each tuning-free group as it
    patches there (METHOD §5).
    """
    selected = _drawn(table, patched.selected, np.random.default_rng(seed))
    result = _patched(table, patched.name, patched.kind, selected)
    result = _as_strong_as(patched, result, seed)
    return result.control_for(patched, "random_neurons")


def edit_controls(
    table: NeuronTable, random_table: NeuronTable, edited: Intervention, *, seed: int
) -> list[Intervention]:
    """What an edit must beat to be about the concept at all (METHOD §5), each dialled as it is.

    Args:
        table: the table `edited` was built from.
        random_table: a table of the same model and means along a random direction.
        edited: from `edit`.
        seed: of the random neurons.

    Returns:
        `__random_neurons` (as many in each tuning-free group, from those that `drop_top` leaves;
        which of them go down and which up is drawn too, as many of each), `__beta_zero` (a pure
        clamp; only a `set` edit has one: for the other kinds beta = 0 changes nothing),
        `__beta_reversed`, and `__random_direction` (the same rule along it).
    """
    kind, alpha, beta = edited.kind, edited.alpha, edited.beta
    if kind not in get_args(EditKind) or alpha is None or beta is None:
        raise DialdownError(
            f"{edited.name} is a {kind}, not an edit, so it has no edit controls: pass the result "
            "of dd.edit."
        )
    options: dict[str, Any] = {"alpha": alpha, "kind": kind}
    options |= {name: edited.record[name] for name in ("ordering", "drop_top")}
    rng = np.random.default_rng(seed)
    sign = _sign(_choose(table, alpha, options["ordering"], options["drop_top"]))
    drawn = _drawn(table, sign != 0, rng, among=_without_top(table, options["drop_top"]))
    shuffled = np.zeros(table.shape)
    # By their own group's rule, random neurons would write less of the concept too.
    shuffled[drawn] = rng.permutation(sign[sign != 0])
    drawn_edit = _with_values(table, edited.name, kind, shuffled, beta)
    controls = {
        "random_neurons": replace(drawn_edit, alpha=alpha, beta=beta),
        "beta_reversed": edit(table, **options, beta=-beta),
        "random_direction": edit(random_table, **options, beta=beta),
    }
    if kind == "set":
        controls["beta_zero"] = edit(table, **options, beta=0.0)
    return [
        _as_strong_as(edited, control, seed).control_for(edited, name)
        for name, control in controls.items()
    ]


def _as_strong_as(main: Intervention, control: Intervention, seed: int) -> Intervention:
    """A control that was made of the numbers of `main`, dialled as `main` is by now."""
    record = {"seed": seed}
    if "strength" in main.record:
        record["strength"] = main.record["strength"]
        # The beta that a scale or shift was made with here has it already.
        if main.beta is None or main.kind not in BETA_DIALS:
            control = control.at(main.record["strength"])
    return replace(control, record={**control.record, **record})


def _drawn(
    table: NeuronTable, selected: Mask, rng: np.random.Generator, *, among: Mask | None = None
) -> Mask:
    """Random neurons, as many in each tuning-free group, and in none, as `selected` has there."""
    groups = [*table.groups(changed=False).values()]
    drawn = selected.copy()
    for mask in (*groups, ~np.logical_or.reduce(groups)):
        pool = mask if among is None else mask & among
        drawn[pool] = rng.permutation(selected[pool])
    return drawn


def _without_top(table: NeuronTable, drop_top: float) -> Mask:
    """All but the fraction `drop_top` of highest mean activation."""
    mean = table.grid("mean_base").ravel()
    kept = np.ones(mean.size, dtype=bool)
    kept[np.argsort(-mean, kind="stable")[: round(drop_top * mean.size)]] = False
    return kept.reshape(table.shape)


def _choose(table: NeuronTable, alpha: float, ordering: str, drop_top: float) -> dict[str, Mask]:
    cosine, mean = np.abs(table.grid("cosine")).ravel(), table.grid("mean_base").ravel()
    kept = _without_top(table, drop_top).ravel()
    chosen = {}
    for name, mask in table.groups(changed=False).items():
        rows = np.flatnonzero(mask.ravel() & kept)
        key = -cosine[rows]
        if ordering == "notebook" and name in GROUPS_UP:
            key = -key
        elif ordering == "activation":
            key = np.abs(mean[rows])
        picked = np.zeros(mean.size, dtype=bool)
        picked[rows[np.argsort(key, kind="stable")[: round(alpha * len(rows))]]] = True
        chosen[name] = picked.reshape(table.shape)
    return chosen


def _sign(chosen: dict[str, Mask]) -> NDArray[np.float64]:
    """(L, F): -1 where the activation shrinks, +1 where it grows, 0 where the neuron was not
    chosen.
    """
    less = np.logical_or.reduce([chosen[name] for name in GROUPS_DOWN])
    more = np.logical_or.reduce([chosen[name] for name in GROUPS_UP])
    return np.asarray(more.astype(np.float64) - less.astype(np.float64))


def _patched(table: NeuronTable, name: str, kind: Kind, selected: Mask) -> Intervention:
    tuned, base = table.grid("mean_tuned"), table.grid("mean_base")
    return _build(table, name, kind, selected, tuned if kind == "set" else tuned - base)


def _with_values(
    table: NeuronTable, name: str, kind: Kind, sign: NDArray[np.float64], beta: float
) -> Intervention:
    mean, factor = table.grid("mean_base"), 1 + sign * beta
    values = {"set": factor * mean, "shift": (factor - 1) * mean, "scale": factor}[kind]
    return _build(table, name, kind, sign != 0, values)


def _build(
    table: NeuronTable, name: str, kind: Kind, selected: Mask, values: NDArray[np.float64]
) -> Intervention:
    gain = np.where(selected, {"set": 0.0, "shift": 1.0}.get(kind, values), 1.0)
    offset = np.where(selected, 0.0 if kind == "scale" else values, 0.0)
    record = {
        "protocol": table.protocol,
        "direction": table.record["direction"],
        "base": table.record["base"],
    }
    return Intervention(name, kind, gain, offset, selected, record=record)
