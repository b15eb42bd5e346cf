"""The files of a run folder, by the stage that writes them, and whether they are as they were
written.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..files import kept_json
from ..models.protocol import Site
from .stage_names import STAGES

RUN = "run.json"
EDIT = "edit.safetensors"
STEP = "step.safetensors"
LABELS = "labels.safetensors"
FRONT_EDITS = "interventions-front"
# The stages that train one direction per layer, and where.
RANK_ONE: dict[str, Site] = {"rank_one": "mlp", "rank_one_attention": "attention"}


def folder_of(stage: str) -> str:
    """Where a stage of `RANK_ONE` leaves what it trained."""
    return stage.replace("_", "-")


# Where two stages write the same files, the first of them that a command has is their owner.
WRITTEN_BY = {
    "direction-*.safetensors": ("probe",),
    "pairs.jsonl": ("pairs",),
    "pairs/*.json": ("pairs",),
    "tuned/**/*": ("train",),
    "tuned-steps/**/*": ("train",),
    "means-base*.safetensors": ("base",),
    "means-tuned*.safetensors": ("activations",),
    "means-training*.safetensors": ("means", "gains"),
    "neurons*.parquet": ("neurons",),
    "results.json": ("evaluate", "check"),
    "rows-check/*.json": ("check",),
    "interventions/*.safetensors": ("evaluate",),
    "gains/**/*": ("gains", "fit"),
    **{f"{folder_of(stage)}/**/*": (stage, "fit") for stage in RANK_ONE},
    "gains-*.safetensors": ("gains", *RANK_ONE, "step", "labels", "fit"),
    STEP: ("step", "fit"),
    LABELS: ("labels", "fit"),
    "methods/**/*": ("fit",),
    "rows-ladder/*.json": ("compare",),
    "ladder.*": ("compare",),
    EDIT: ("dial",),
    "tables/gains-*.csv": ("dial", "gains"),
    "tables/rank-one-*.csv": ("dial",),
    "front.json": ("front",),
    "rows-front/*.json": ("front",),
    f"{FRONT_EDITS}/*.safetensors": ("front",),
    "figures/*": ("report",),
    "report.html": ("report",),
}
# Tables are made from the neurons and from the rows, and rows that need no tuned model are measured
# first; whichever stage wrote a file has it in its record.
SHARED = {"tables/*.csv": ("neurons", "report"), "rows/*.json": ("base", "evaluate")}
# The stages whose files a stage reads.
READS = {
    "base": ("probe",),
    "pairs": ("probe",),
    "train": ("pairs",),
    "activations": ("train",),
    "neurons": ("probe", "base", "train", "activations"),
    "evaluate": ("probe", "base", "train", "activations", "neurons"),
    "gains": ("probe", "pairs"),
    **dict.fromkeys(RANK_ONE, ("pairs",)),
    "step": ("pairs", "gains"),
    "front": ("probe", "base", "train", "activations", "neurons", "gains", "step"),
    "dial": ("probe", "pairs", "means", "gains", *RANK_ONE, "step", "labels"),
    "check": ("dial",),
    "fit": ("probe", "pairs"),
    "compare": ("fit",),
    "report": STAGES[:-1],
}
# The stages that measure rows.
MEASURING = ("base", "evaluate", "front", "check", "compare")
# How long a training took is not part of what it made.
UNREAD = re.compile(r"/training\.json$")
# A training writes these as a whole, so where one file of them is lost the training is done again.
TRAINED = re.compile(r"^(tuned|tuned-steps|gains|rank-one(-attention)?|methods/dpo(_kl)?)/")


def run_record(folder: Path) -> dict[str, Any] | None:
    """run.json of a study's folder; None where it is not a study's."""
    record = kept_json(folder / RUN)
    return record if {"config", "stages"} <= record.keys() else None


def so_far(name: str) -> str:
    """The file beside results.json or front.json that holds its rows until all are there."""
    return f"{name.removesuffix('.json').removesuffix('-so-far')}-so-far.json"


def written(folder: Path, stage: str, stages: Iterable[str]) -> list[str]:
    """The files of a stage that are there, relative to the folder."""
    names = [*stages]
    patterns = [
        pattern
        for pattern, owners in WRITTEN_BY.items()
        if stage == next((o for o in owners if o in names), None)
    ]
    patterns += [pattern for pattern, owners in SHARED.items() if stage in owners]
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(
        place.as_posix()
        for place in (path.relative_to(folder) for path in paths)
        if not any(part.startswith(".") for part in place.parts)
    )


def remove(folder: Path, lost: Iterable[str], recorded: Iterable[str]) -> None:
    """Remove damaged files of a stage; with one of a training, every recorded one."""
    lost = {*lost}
    if any(TRAINED.match(place) for place in lost):
        lost |= {place for place in recorded if TRAINED.match(place)}
    for path in (folder / place for place in lost):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
