"""Rows measured by several processes, one core each.

Rows do not depend on each other, and on a CPU a forward pass on two threads is far from twice as fast as on one: its
small operations are serial and the threads wait for each other. So each worker runs on one thread with models of its
own and takes the next row. Finished rows are files; a worker that is stopped loses the row it was at.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import psutil
import torch

from .errors import DialdownError
from .plan import Planned

# What a worker holds besides two models' weights: libraries, the base model's distributions, activations.
WORKER_BYTES = 1 << 30


@dataclass(frozen=True)
class Done:
    """A finished row: its name, and the worker's process id and peak memory in bytes so far."""

    name: str
    worker: int
    peak: int


_measure: Callable[[Planned], None] | None = None


def default_workers(model_bytes: int, device: str) -> int:
    """One worker per core where memory allows, one alone on a GPU."""
    if device != "cpu":
        return 1
    fitting = psutil.virtual_memory().available // (2 * model_bytes + WORKER_BYTES)
    return max(1, min(os.cpu_count() or 1, int(fitting)))


def measure_all(
    prepare: Callable[[], Callable[[Planned], None]], rows: Sequence[Planned], workers: int
) -> Iterator[Done]:
    """Measure rows in `workers` processes, in the order they finish.

    Args:
        prepare: called once in each worker; returns what measures one row. It travels to the workers, so it is a
            function of a module, or a partial of one.
        rows: what to measure.
        workers: how many processes.

    Raises:
        DialdownError: a row could not be measured.
    """
    # A forked process may not use OpenMP after its parent did, so the workers start afresh.
    with get_context("spawn").Pool(min(workers, len(rows)), _start, (prepare,)) as pool:
        for outcome in pool.imap_unordered(_one, rows):
            if isinstance(outcome, str):
                raise DialdownError(outcome)
            yield outcome


def _start(prepare: Callable[[], Callable[[Planned], None]]) -> None:
    global _measure  # noqa: PLW0603  (a pool's initialiser has nowhere else to leave what its tasks need)
    # Ctrl-C reaches the whole group; the main process answers it and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _measure = prepare()


def _one(row: Planned) -> Done | str:
    assert _measure is not None
    try:
        _measure(row)
    except DialdownError as error:
        return str(error)
    return Done(row.name, os.getpid(), peak_bytes() or 0)


def peak_bytes() -> int | None:
    """Peak resident memory of this process, in bytes; None where the system does not say."""
    status = Path("/proc/self/status")
    # Not `getrusage`: on Linux a process starts with the peak of the one that started it.
    if status.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        return int(found[1]) << 10 if found else None
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None
