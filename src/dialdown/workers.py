"""Work in pieces done by several processes of this machine (`cluster` has those of others).

The pieces (rows of an evaluation, batches of prompts) do not depend on each other, and on a CPU a
forward pass on two threads is far from twice as fast as on one: its small operations are serial and
the threads wait for each other. So each worker runs on one thread, or on one GPU, with models of
its own and takes the next piece. A finished piece is a file in a folder that all of them see; a
worker that is stopped loses the piece it was at, which another does again.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import current_process, get_all_start_methods, get_context, parent_process
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from threading import Thread
from typing import Any

import psutil

from .errors import DialdownError

# What a worker holds besides: libraries and the activations of one forward pass.
WORKER_BYTES = 1 << 30
# Workers that may end by themselves before any piece is finished: what kills the second as well is
# no accident.
LOSSES = 2
# The exit status of a worker that a script without a `__main__` guard would have start everything
# again.
UNGUARDED = 97

Prepare = Callable[[], Callable[[Any], Any]]
"""Makes what does one piece. It travels to the workers, so it is a function of a module, or a
partial of one.
"""


@dataclass(frozen=True)
class Done:
    """A finished piece with what its work returned, and its worker's process id and peak memory in
    bytes so far.
    """

    piece: Any
    told: Any
    worker: int
    peak: int


_do: Callable[[Any], Any] | None = None


def default_workers(each: int, device: str, devices: Sequence[str]) -> int:
    """One worker per core where memory allows, or one per GPU.

    Args:
        each: bytes that a worker holds besides its libraries.
        device: the kind of device where the models run.
        devices: the GPUs that workers share out, see `gpus`.
    """
    if device != "cpu":
        return max(1, len(devices))
    fitting = psutil.virtual_memory().available // (each + WORKER_BYTES)
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(cores, int(fitting)))


def gpus(device: str | None) -> list[str]:
    """The GPUs that workers share out, as `CUDA_VISIBLE_DEVICES` names them; none where a device
    other than `cuda` is asked for, such as `cuda:1`.
    """
    if device not in (None, "cuda"):
        return []
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


def do_all(
    prepare: Prepare,
    pieces: Sequence[Any],
    workers: int,
    devices: Sequence[str] = (),
    told: Callable[[str], None] = lambda note: None,
) -> Generator[Done]:
    """Do every piece in one of `workers` processes, in the order they finish.

    Args:
        prepare: called once in each worker.
        pieces: what to do; each travels to a worker too.
        workers: how many processes.
        devices: the GPUs that they have in turn, see `gpus`.
        told: called with a sentence when a worker was lost.
    """
    check_main_guard()
    left = dict(enumerate(pieces))
    lost = 0
    while left:
        try:
            with closing(_do_all(prepare, left, workers, devices)) as finished:
                for number, done in finished:
                    del left[number]
                    lost = 0
                    yield done
        except _LostError as error:
            lost += 1
            if lost == LOSSES:
                raise DialdownError(str(error)) from error
            told("a worker process ended by itself; what it was at was done again")


class _LostError(Exception):
    """A worker ended by itself; the next one may not."""


def _do_all(
    prepare: Prepare, pieces: Mapping[int, Any], workers: int, devices: Sequence[str]
) -> Generator[tuple[int, Done]]:
    """The pieces as they are finished, with their numbers, until a worker is lost."""
    workers = min(workers, len(pieces))
    context = _starting_afresh(prepare)
    turns = context.SimpleQueue()
    for worker in range(workers):
        turns.put(devices[worker % len(devices)] if devices else None)
    pool = ProcessPoolExecutor(workers, context, _start, (prepare, turns, dict(os.environ)))
    try:
        futures = {pool.submit(_one, piece): number for number, piece in pieces.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        for process in _processes(pool):
            process.join(5)
        codes = {process.exitcode or 0 for process in _processes(pool)}
        if UNGUARDED in codes:
            raise DialdownError(
                'This script calls dialdown outside `if __name__ == "__main__":`, so each of the '
                "processes that measure would start it all again: put the call under that line, or "
                "set workers=1."
            ) from None
        raise _LostError(_why_ended(codes)) from None
    finally:
        # Pieces still in work would otherwise be waited for, also after Ctrl-C; and so would, for
        # good, a worker that was starting as another was lost, which Python 3.11 does not end.
        for process in _processes(pool):
            process.terminate()
        pool.shutdown(cancel_futures=True)


def _processes(pool: ProcessPoolExecutor) -> list[BaseProcess]:
    """The workers that a pool has started by now."""
    return list((pool._processes or {}).values())


def _starting_afresh(prepare: Prepare) -> BaseContext:
    """How workers start: not forked from this process, where OpenMP may have run, but from one that
    has only imported what they need, and does so once for all stages of a run.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    module = getattr(prepare, "func", prepare).__module__
    # Scripts are read by each worker, whose guard is then checked.
    context.set_forkserver_preload(["torch", *([module] if module != "__main__" else [])])
    from multiprocessing import forkserver, resource_tracker

    # Ctrl-C reaches the whole group, and what is imported meanwhile would end in a traceback; this
    # process answers it. The tracker, which the server needs, would lift the block.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # Returns when all is imported: a worker that began after its parent's end would miss what they
    # share, and say so.
    first = context.Process()
    first.start()
    first.join()
    return context


def _why_ended(codes: Iterable[int]) -> str:
    """What to say of lost workers, from their exit statuses; SIGTERM is the pool's own."""
    signals = sorted(-code for code in codes if code < 0 and -code != signal.SIGTERM)
    if not signals or signals == [signal.SIGKILL]:
        return (
            "A worker process was killed, most likely for memory: repeat the same command with "
            "--set workers=1; what is finished is kept."
        )
    return (
        f"A worker process was ended by {signal.strsignal(signals[0]) or signals[0]}: repeat "
        "the same command with --set workers=1; what is finished is kept."
    )


def check_main_guard() -> None:
    """End a worker that was about to do its parent's work: it reads the script that started it, and
    that has no `__main__` guard.
    """
    # What multiprocessing itself asks before it would say so, in thirty lines.
    if getattr(current_process(), "_inheriting", False):
        os._exit(UNGUARDED)


def _start(
    prepare: Prepare, turns: SimpleQueue[str | None], environment: Mapping[str, str]
) -> None:
    global _do  # noqa: PLW0603  (a pool's initialiser has no other place)
    import torch

    # The process it was forked from has the environment of the first stage's start.
    os.environ.clear()
    os.environ.update(environment)
    if (device := turns.get()) is not None:
        # Read when CUDA is first used: the worker then sees this GPU alone.
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    Thread(target=end_with_parent, daemon=True).start()
    # Ctrl-C reaches the whole group; the main process answers it and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    quiet_libraries()
    _do = prepare()


def end_with_parent() -> None:
    """End this process with its parent: one that was killed can't end its workers."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _one(piece: Any) -> Done:
    assert _do is not None
    return Done(piece, _do(piece), os.getpid(), peak_bytes() or 0)


def return_free_memory() -> None:
    """Give freed memory back to the system and the GPU, which the C library and torch otherwise
    keep for this process alone.
    """
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA was not used
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def quiet_libraries() -> None:
    """Leave the terminal to our own progress, not to the libraries' bars and notices."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for library in ("HUB", "DATASETS"):
        os.environ.setdefault(f"HF_{library}_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def peak_bytes() -> int | None:
    """Peak resident memory of this process, in bytes; None where the system does not say."""
    status = Path("/proc/self/status")
    # Not `getrusage`: on Linux a process starts with the peak of the one that started it.
    if status.exists():
        match = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        return int(match[1]) << 10 if match else None
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None
