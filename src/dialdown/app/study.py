"""What of a study's folder the app shows, read anew each time, so that a run that is still going
fills it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..neurons.table import NeuronTable, neuron_table
from ..report.run import settings_of
from ..study.outputs import run_record

if TYPE_CHECKING:
    from ..models.lm import LM
    from ..study.context import Workspace


def workspace(folder: Path) -> Workspace:
    """A study as its own stages see it (DialdownError where run.json is of another version)."""
    from ..study.context import Workspace

    return Workspace(settings_of(folder, run_record(folder) or {"config": {}}), folder)


def untuned_table(folder: Path, lm: LM) -> NeuronTable | None:
    """The table without a tuned model, from the direction and the means that `detox` leaves; None
    where they are not there.
    """
    from ..neurons.activations import NeuronMeans
    from ..neurons.directions import Direction

    probe, means = folder / "direction-probe.safetensors", folder / "means-training.safetensors"
    if not (probe.exists() and means.exists()):
        return None
    return neuron_table(lm, Direction.load(probe), NeuronMeans.load(means))
