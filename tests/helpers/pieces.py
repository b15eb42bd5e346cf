"""Pieces of work for workers, which import this by its name."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path


def prepare(folder: Path) -> partial[None]:
    """What does a piece in `folder`."""
    return partial(work, folder)


def work(folder: Path, piece: int) -> None:
    """Write where a piece was done; piece 0 is the end of the first worker that takes it up."""
    if piece == 0 and not (folder / "lost").exists():
        (folder / "lost").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / str(piece)).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
