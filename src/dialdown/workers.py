"""Rows measured by several processes, one core each.

Rows do not depend on each other, and on a CPU a forward pass on two threads is far from twice as fast as on one: its
small operations are serial and the threads wait for each other. So each worker runs on one thread with models of its
own and takes the next row. Finished rows are files; a worker that is stopped loses the row it was at.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import psutil
import torch

from .errors import DialdownError
from .plan import Planned

# What a worker holds besides: libraries and the activations of one forward pass.
WORKER_BYTES = 1 << 30


@dataclass(frozen=True)
class Done:
    """A finished row: its name, and the worker's process id and peak memory in bytes so far."""

    name: str
    worker: int
    peak: int


_measure: Callable[[Planned], None] | None = None


def default_workers(model_bytes: int, shared_bytes: int, device: str) -> int:
    """One worker per core where memory allows, one alone on a GPU.

    Args:
        model_bytes: weights of one model; a worker holds two at times.
        shared_bytes: what a worker keeps for all its rows: prefixes' keys and values, the base's distributions.
        device: where the models run.
    """
    if device != "cpu":
        return 1
    fitting = psutil.virtual_memory().available // (2 * model_bytes + shared_bytes + WORKER_BYTES)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(fitting)))


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
    pool = ProcessPoolExecutor(min(workers, len(rows)), get_context("spawn"), _start, (prepare,))
    try:
        for future in as_completed([pool.submit(_one, row) for row in rows]):
            yield future.result()
    except BrokenProcessPool as error:
        raise DialdownError(
            "A process that measured rows was killed, most likely for memory: repeat the same command with --set workers=1; finished rows are kept."
        ) from error
    finally:
        # Rows still running would otherwise be waited for, also after Ctrl-C.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(cancel_futures=True)


def _start(prepare: Callable[[], Callable[[Planned], None]]) -> None:
    global _measure  # noqa: PLW0603  (a pool's initialiser has nowhere else to leave what its tasks need)
    # Ctrl-C reaches the whole group; the main process answers it and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    quiet_libraries()
    _measure = prepare()


def _one(row: Planned) -> Done:
    assert _measure is not None
    _measure(row)
    return Done(row.name, os.getpid(), peak_bytes() or 0)


def quiet_libraries() -> None:
    """Leave the terminal to our own progress: the libraries' bars and notices would interleave with it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # likewise
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


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
