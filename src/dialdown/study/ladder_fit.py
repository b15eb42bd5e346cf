"""Fitting the methods of a ladder, all on the same labelled texts or the same pairs, and dialling
what was fitted.

Each leaves what it found in the folder `methods`, with what it took, and is not fitted again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch

from .. import __version__
from ..errors import DialdownError
from ..files import SCHEMA, fingerprint, read_sealed, write_sealed
from ..interventions.explain import shuffled
from ..interventions.intervention import Intervention, untouched
from ..models.bias import holds_bias
from ..models.hooks import changing
from ..models.lm import LM
from ..progress import progress
from .context import Facts, Workspace
from .gains import seconds_of
from .ladder_methods import (
    CONTROLS,
    FOLDER,
    LADDER,
    RANDOM,
    UNTOUCHED,
    method_of,
    needs_pairs,
    pairs_of,
    path_of,
    result_of,
)
from .sources import file_states

# The settings that every method depends on.
SETTINGS = ("model", "revision", "dtype", "device", "template", "seed", "probe")
Dial = Callable[[float], AbstractContextManager[tuple[LM, Intervention]]]
"""What a method makes of the model at a strength, inside the context: the model, and the edit that
acts on it.
"""


def fit_methods(work: Workspace) -> Facts:
    """Fit what is not fitted yet; what each took, by its name."""
    names = _at_hand(work)
    if needs_pairs(names):
        _check_unseen(work)
    missing = [name for name in names if _kept(work, name) is None]
    missing.sort(key=lambda name: not method_of(name).trained)
    pieces = _prepared(work, missing)
    done = len(names) - len(missing)
    progress("fitting methods", done, len(names))
    for _ in _fit_all(work, pieces):
        done += 1
        progress("fitting methods", done, len(names))
    records = {name: record for name in names if (record := _kept(work, name))}
    for record in records.values():
        work.notes.repeat(record.get("noted", {}))
    return {"methods": {name: record["told"] for name, record in records.items()}}


class Piece(NamedTuple):
    """A method to be fitted, and how many seconds it took to make what it needs."""

    name: str
    prepared: float


def _prepared(work: Workspace, missing: Sequence[str]) -> list[Piece]:
    """Make what several methods learn from, once."""
    took: dict[Callable[[Workspace], object], float] = {}
    for make in [make for name in missing for make in method_of(name).needs]:
        if make not in took:
            start = time.perf_counter()
            make(work)
            # An earlier command may have made it, for which a method that joins later pays too.
            took[make] = max(time.perf_counter() - start, seconds_of(work, make))
    # Each would have made it for itself.
    return [Piece(name, sum(took[make] for make in method_of(name).needs)) for name in missing]


def _fit_all(work: Workspace, pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Fit methods by workers, a method each, or one after the other: where ranks of a training
    share the machine, and where there are more cores than methods, which do one sooner together.
    """
    config, workers = work.config, work.workers("fit")
    ranks = max(config.dpo.ranks, config.gains.ranks, config.rank_one.ranks)
    idle = isinstance(workers, int) and len(pieces) < workers and work.lm.device.type == "cpu"
    if ranks == 1 and not idle:
        yield from work.do_all("fit", fit_method, pieces)
        return
    for piece in pieces:
        fit_method(work, piece)
        yield piece


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
    left = len(work.prompts.training) - pairs_of(work).record["prompts_used"]
    if len(work.unseen) > left:
        raise DialdownError(
            f"The pairs leave {left} prompts unseen, and {len(work.unseen)} are to be judged "
            f"(ladder.prompts): lower it to {left}, or set training_prompts to a source with more."
        )


def _kept(work: Workspace, name: str) -> dict[str, Any] | None:
    """The record of a method that was fitted before; None if it was not, or from something else."""
    record = read_sealed(path_of(work, name, ".json"))
    if (
        record is None
        or record["inputs"] != _inputs(work, name)
        or not result_of(work, name).exists()
    ):
        return None
    return record


def fit_method(work: Workspace, piece: Piece) -> None:
    """Fit a method, and leave it with what it took in the folder `methods`."""
    name = piece.name
    start, method = time.perf_counter(), method_of(name)
    with work.noting() as noted:
        edit, trained = method.fit(work)
    folds = True
    if edit is not None:
        edit.save(result_of(work, name))
        held = edit.outputs is None or edit.outputs.unheld_offset(work.lm) is None
        folds = held and (not edit.needs_bias or holds_bias(work.lm))
    data = "pairs" if method.pairs else "labels"
    units = len(pairs_of(work).pairs) if method.pairs else len(work.labelled)
    # A training that was interrupted has most of its time behind it.
    seconds = piece.prepared + max(time.perf_counter() - start, trained)
    facts = {data: units, "seconds": round(seconds, 1), "folds": folds}
    record = {"inputs": _inputs(work, name), "told": facts, "noted": noted.facts}
    write_sealed(path_of(work, name, ".json"), record)


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
    return Intervention.load(result_of(work, name))


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
