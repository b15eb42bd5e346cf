"""The stages that only a front needs: gains, trained and of one step, and every family of
interventions at several strengths.
"""

from __future__ import annotations

import shutil

from ..files import read_json
from ..interventions.intervention import Intervention
from ..training.dpo import RECORD
from . import plan
from .context import Facts, Workspace
from .gains import TRAINED, explain, gain_sweep, take_step, tune_gains
from .measure import measure_rows
from .notes import NOT_ASKED
from .stage import FRONT_EDITS
from .stages import collect_training_means

NO_PAIRS = "a tuned model was given, so there are no pairs"


def gains_for_front(work: Workspace) -> Facts:
    """Neuron gains from the study's own pairs, where a front is asked for."""
    # Here and in `draw_front`: what an earlier front left would stand in the report as if it were
    # of these settings.
    if reason := _skipped(work):
        for name in ("gains-by-group", "gains-top-neurons"):
            (work.folder / "tables" / f"{name}.csv").unlink(missing_ok=True)
        return {"skipped": reason}
    return {
        **collect_training_means(work),
        **tune_gains(work),
        **explain(work, Intervention.load(work.folder / TRAINED)),
    }


def step_for_front(work: Workspace) -> Facts:
    """One step of the natural gradient, where a front is asked for."""
    reason = _skipped(work)
    return {"skipped": reason} if reason else take_step(work)


def _skipped(work: Workspace) -> str | None:
    """Why no gains are made for a front."""
    if not plan.has_front(work.config):
        return NOT_ASKED
    return None if work.config.tuned is None else NO_PAIRS


def draw_front(work: Workspace) -> Facts:
    """Every family at several strengths, and DPO along its training, on the same prompts."""
    settings = work.config.front
    if not plan.has_front(work.config):
        (work.folder / "front.json").unlink(missing_ok=True)
        shutil.rmtree(work.folder / FRONT_EDITS, ignore_errors=True)
        return {
            "skipped": NOT_ASKED if not settings.count else "the front is of the strict protocol"
        }
    steps = _snapshots(work)
    if work.config.tuned is None and len(steps) < work.config.dpo.snapshots:
        work.notes.add(
            "DPO stands on the front at {kept} of {asked} earlier steps, those whose weights were "
            "kept",
            kept=len(steps),
            asked=work.config.dpo.snapshots,
        )
    models = [*(f"tuned-steps/{step}" for step in steps), "tuned"]
    planned = [
        *plan.front(
            work.tables("strict"),
            settings,
            work.config.interventions,
            models,
            further=gain_sweep(work) if work.config.tuned is None else [],
            seed=work.config.seed,
        )
    ]
    measure_rows(work, "front", planned, "front.json")
    for row in planned:
        if row.intervention.kind != "none":
            row.intervention.save(work.folder / FRONT_EDITS / f"{row.name}.safetensors")
    return {"rows": len(planned)}


def _snapshots(work: Workspace) -> list[int]:
    """The steps at which this very training, not an earlier one, was kept."""
    if work.config.tuned is not None:
        return []
    inputs = read_json(work.folder / "tuned" / RECORD)["inputs"]
    kept = [path for path in (work.folder / "tuned-steps").glob("*") if path.name.isdigit()]
    return sorted(int(path.name) for path in kept if read_json(path / RECORD)["inputs"] == inputs)
