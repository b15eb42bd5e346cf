"""Pieces of work done by the workers of a Dask cluster, of other machines too.

    dialdown run --set workers=dask:tcp://head:8786          # or dask:/shared/scheduler.json

Every worker sees the folder of the study, under the path that it has here, and has the same
versions installed (docs/cluster.md). What a worker makes of the study is kept for its next piece
of the same work.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, as_completed
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import uuid4

from .errors import DialdownError
from .extras import asking_for
from .workers import Done, Prepare, peak_bytes, quiet_libraries

DASK = "dask:"
# Seconds that a scheduler has to answer.
PATIENCE = 10
# Times that a piece is done again after its worker was lost.
RETRIES = 3

# What the worker made last, by the work it was made for: a file that the settings name may change
# before the same work is asked for again. A worker of Dask may have several threads, and edits act
# on the one model in memory.
_prepared: dict[str, Callable[[Any], Any]] = {}
_one_at_a_time = Lock()


def do_all(prepare: Prepare, pieces: Sequence[Any], where: str, folder: Path) -> Generator[Done]:
    """Do every piece on a cluster, in the order they finish; stop early by closing the iterator.

    Args:
        prepare: called in each worker, once for all of its pieces.
        pieces: what to do; each travels to a worker.
        where: `dask:ADDRESS` of a scheduler, or `dask:FILE` that it wrote.
        folder: where the pieces are written, which every worker must see.
    """
    client = _client(where.removeprefix(DASK))
    futures: list[Future[Done]] = []
    try:
        executor = client.get_executor(retries=RETRIES)
        work, job = uuid4().hex, pickle.dumps(prepare)
        place = str(folder.absolute()), os.getcwd()
        futures = [executor.submit(_one, work, job, place, piece) for piece in pieces]
        for future in as_completed(futures):
            yield future.result()
    finally:
        for future in futures:
            future.cancel()
        client.close()


def _client(where: str) -> Any:
    with asking_for(f"workers={DASK}{where}"):
        from distributed import Client
    file = Path(where)
    if "://" not in where and not file.is_file():
        raise DialdownError(
            f"workers={DASK}{where} names neither an address such as tcp://head:8786 nor the file "
            "that a scheduler wrote: start one with `dask scheduler --scheduler-file FILE`."
        )
    try:
        named = {"address": where} if "://" in where else {"scheduler_file": where}
        client: Any = Client
        return client(**named, timeout=PATIENCE)
    except (OSError, TimeoutError, ValueError) as error:
        raise DialdownError(
            f"No Dask scheduler answers at {where} ({error or type(error).__name__}): start one "
            "with `dask scheduler`, or set workers to a number of processes of this machine."
        ) from error


def _one(work: str, job: bytes, place: tuple[str, str], piece: Any) -> Done:
    """Do a piece of a work, in a worker."""
    import torch

    with _one_at_a_time:
        if work not in _prepared:
            _prepared.clear()
            _enter(*place)
            # As in the workers of one machine, whose results these are to the bit.
            torch.set_num_threads(1)
            quiet_libraries()
            _prepared[work] = pickle.loads(job)()
        return Done(piece, _prepared[work](piece), os.getpid(), peak_bytes() or 0)


def _enter(folder: str, here: str) -> None:
    """Let relative paths in the settings mean what they mean where the study was started."""
    for path in (folder, here):
        if not os.path.isdir(path):
            raise DialdownError(
                f"A worker on {socket.gethostname()} does not see {path}: start the study in a "
                "folder that all machines share."
            )
    os.chdir(here)
