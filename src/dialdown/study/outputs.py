"""The files of a run folder, by the stage that writes them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..files import kept_json
from .stage import ALL

RUN = "run.json"
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


def rows_of(stage: str) -> list[str]:
    """The files into which a stage gathers its rows."""
    return [place for place in ALL[stage].writes if place in ("results.json", "front.json")]


def written(folder: Path, stage: str) -> list[str]:
    """The files there that a stage may have written, relative to the folder."""
    patterns = ALL[stage].writes
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
