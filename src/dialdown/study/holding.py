"""One command at a time in a run folder."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import DialdownError
from ..files import disk_errors, read_sealed, write_sealed

LOCK = ".dialdown.lock"
# Who holds the lock, which opening the lock's own file might empty.
HOLDER = ".dialdown.json"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other commands out of a folder; a process that is killed holds nothing any more."""
    lock = FileLock(folder / LOCK)
    try:
        with disk_errors(folder):
            lock.acquire(timeout=0)
    except Timeout as error:
        holder = read_sealed(folder / HOLDER)
        who = (
            "another command"
            if holder is None
            else "process {pid} on {host} since {since}".format(**holder)
        )
        raise DialdownError(
            f"{folder} is in use by {who}: wait until it has ended, or pass another folder."
        ) from error
    try:
        since = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        write_sealed(
            folder / HOLDER, {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        )
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written; only the folder's holder writes there."""
    for path in [*folder.rglob(".*.partial"), *folder.rglob(".*.old")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
