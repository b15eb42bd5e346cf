"""What of a study's folder the app shows, read anew each time, so that a run that is still going
fills it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from ..errors import DialdownError
from ..files import read_sealed
from ..neurons.table import NeuronTable, neuron_table
from ..progress import Progress, silent
from ..report.run import TABLES, Run, load
from ..study.config import Config
from .source import RUN, run_record

if TYPE_CHECKING:
    from ..models.lm import LM
    from ..study.context import Workspace

RESULTS = "results.json"


def workspace(folder: Path, progress: Progress = silent) -> Workspace:
    """A study as its own stages see it.

    Raises:
        DialdownError: run.json has settings of another version.
    """
    from ..study.context import Workspace

    record = run_record(folder) or {}
    try:
        config = Config(**record.get("config", {}))
    except ValidationError as error:
        raise DialdownError(
            f"{folder / RUN} holds settings that this version does not know "
            f"({error.errors()[0]['loc']}): use the version that ran the study."
        ) from error
    return Workspace(config, folder, progress)


def measured(folder: Path | None) -> Run | None:
    """The rows of a study; None where none are there yet."""
    return load(folder) if folder and (folder / RESULTS).exists() else None


def saved_table(folder: Path | None) -> NeuronTable | None:
    """The neuron table of a study, `strict` where it has that; None where there is none yet."""
    paths = [folder / name for name in TABLES.values()] if folder else []
    return next((NeuronTable.load(path) for path in paths if path.exists()), None)


def untuned_table(folder: Path | None, lm: LM) -> NeuronTable | None:
    """The table without a tuned model, from the direction and the means that `detox` leaves; None
    where they are not there.
    """
    if folder is None:
        return None
    from ..neurons.activations import NeuronMeans
    from ..neurons.directions import Direction

    probe, means = folder / "direction-probe.safetensors", folder / "means-training.safetensors"
    if not (probe.exists() and means.exists()):
        return None
    return neuron_table(lm, Direction.load(probe), NeuronMeans.load(means))


def read_texts(folder: Path | None, prompts: Sequence[str], count: int) -> list[str]:
    """Prompts with what the base went on to write where that was measured, prompts alone where it
    was not.
    """
    row = read_sealed(folder / "rows" / "strict-none.json") if folder else None
    continuations = row["texts"] if row else []
    continuations = [*continuations, *[""] * len(prompts)]
    return [prompt + said for prompt, said in zip(prompts[:count], continuations, strict=False)]
