"""Starting the ranks of a training, on this machine and on others (docs/cluster.md), by torch's
elastic launcher.

With several machines, the one whose command trains is where the others meet: at MASTER_ADDR and
MASTER_PORT, as torch calls them, or else its name and port 29400. There `join` finds it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from tempfile import TemporaryDirectory
from threading import current_thread, main_thread
from typing import Any
from uuid import uuid4

from ..errors import DialdownError
from ..progress import Progress, listener, progress
from .settings import DPOSettings

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
PORT = 29400
MEETING = "dialdown"
PATIENCE = 3600  # seconds that machines wait for one another
CONNECTING = 10  # seconds that a machine which joins tries to reach the other
RETRY = 2.0  # seconds until a machine that joins looks again
Rank = Callable[[Connection], Any]
"""What each rank does, given where it tells of its progress; a function of a module, or a partial
of one.
"""


def address() -> str:
    """HOST:PORT where other machines join."""
    host = os.environ.get("MASTER_ADDR") or socket.gethostname()
    return f"{host}:{os.environ.get('MASTER_PORT') or PORT}"


def launch(rank: Rank, settings: DPOSettings) -> Any:
    """Start the ranks of this machine, wait for them, and give what the first returns."""
    if settings.nodes == 1:
        return _started(rank, settings.processes, settings.processes)
    from torch.distributed.elastic.rendezvous import RendezvousError

    others = f"{settings.nodes - 1} more to run `dialdown join {address()}`"
    _check_reachable(address())
    progress(f"waiting for {others}", 0, 1)
    meeting = _meeting(address(), settings.nodes)
    try:
        return _started(rank, settings.processes, settings.ranks, **meeting)
    except RendezvousError as error:
        raise DialdownError(
            f"This training waited for {others}, and could not go on ({error}): run that on the "
            "other machines and repeat the command, or leave nodes at 1."
        ) from error


def _check_reachable(at: str) -> None:
    """Refuse an address that is not this machine's, or not free (DialdownError)."""
    host, _, port = at.rpartition(":")
    try:
        socket.create_server((host, int(port))).close()
    except (OSError, ValueError) as error:
        raise DialdownError(
            f"Other machines cannot join this one at {at} ({error}): set MASTER_ADDR and "
            "MASTER_PORT to a name and a free port of this machine, as the others know it."
        ) from error


def join(rank: Rank, at: str, *, nodes: int, processes: int) -> None:
    """Take part in the next training that another machine's command starts at HOST:PORT, with
    `processes` ranks of `nodes` machines; until then it waits.
    """
    from torch.distributed.elastic.rendezvous import RendezvousError

    host, _, port = at.rpartition(":")
    if not host or not port.isdecimal():
        raise DialdownError(
            f"{at!r} is not an address to join: pass HOST:PORT, as the command that trains says it."
        )
    meeting = _meeting(at, nodes, here=False)
    while True:
        _await(host, int(port))
        try:
            _started(rank, processes, processes * nodes, **meeting)
        except RendezvousError:
            # A training that has just ended still was there.
            time.sleep(RETRY)
        else:
            return


def _await(host: str, port: int) -> None:
    """Wait until something listens there: torch's own waiting hears no Ctrl-C, and is loud."""
    while True:
        try:
            socket.create_connection((host, port), RETRY).close()
        except OSError:
            time.sleep(RETRY)
        else:
            return


def _meeting(at: str, nodes: int, *, here: bool = True) -> dict[str, Any]:
    """Where machines meet, and whether that is here."""
    return {
        "min_nodes": nodes,
        "max_nodes": nodes,
        "run_id": MEETING,
        "rdzv_endpoint": at,
        "rdzv_configs": {
            "is_host": here,
            "join_timeout": PATIENCE,
            "last_call_timeout": 1,
            "timeout": CONNECTING,
        },
        # Under which name others reach this machine; by default its own.
        "local_addr": os.environ.get("MASTER_ADDR") if here else None,
    }


def _started(rank: Rank, processes: int, everyone: int, **meeting: Any) -> Any:
    """What the first of the ranks of this machine returns, of `everyone`."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    reader, writer = get_context("spawn").Pipe(duplex=False)
    refused: list[str] = []
    hearing = ThreadPoolExecutor(1).submit(_listen, reader, listener(), refused)
    alone = {
        "min_nodes": 1,
        "max_nodes": 1,
        "run_id": uuid4().hex,
        "rdzv_endpoint": "localhost:0",
        # Looking up the name of this machine takes seconds where there is no network.
        "local_addr": "localhost",
    }
    try:
        with TemporaryDirectory() as logs, _launcher_quiet():
            config = LaunchConfig(
                **(meeting or alone),
                nproc_per_node=processes,
                rdzv_backend="c10d",
                max_restarts=0,
                # What gloo says when ranks have met is nobody's business.
                logs_specs=DefaultLogsSpecs(log_dir=logs, redirects=Std.OUT),
            )
            results = elastic_launch(config, _call)(rank, writer)
        return results[min(results)]
    except SignalException as error:
        # The launcher took the signals; whoever had them before is to hear of it.
        signal.raise_signal(error.sigval)
        raise
    except ChildFailedError as error:
        _end_listening(writer, hearing)
        if refused:
            raise DialdownError(refused[0]) from error
        number, failure = error.get_first_failure()
        # What Python raised there is a dictionary.
        message: Any = failure.message
        message = message.get("message") if isinstance(message, dict) else message
        reason = " ".join(str(message or f"exit status {failure.exitcode}").split())[:200]
        raise DialdownError(
            f"Rank {number} of {everyone} ended by itself ({reason}), and the others with "
            "it: repeat the same command, which goes on from the last checkpoint, with fewer "
            "processes or a smaller batch_size if memory ran out."
        ) from error
    finally:
        _end_listening(writer, hearing)


def _call(rank: Rank, parent: Connection) -> Any:
    # The launcher asks for a function's name, which a partial has not.
    return rank(parent)


def _listen(reader: Connection, tell: Progress, refused: list[str]) -> None:
    messages = iter(reader.recv, None)
    try:
        for message in messages:
            if isinstance(message, str):
                refused.append(message)
            else:
                tell(*message)
    finally:
        # Whoever listens raised something, and ranks would wait at a pipe that is full.
        refused += [message for message in messages if isinstance(message, str)]


def _end_listening(writer: Connection, hearing: Future[None]) -> None:
    """Wait for what ranks have said, and raise what the listener raised."""
    if not hearing.done():
        writer.send(None)
    hearing.result()


@contextmanager
def _launcher_quiet() -> Iterator[None]:
    """What the launcher logs is in the error that it raises, and its handlers of signals would
    outlive it.
    """
    disabled = logging.root.manager.disable
    before = [signal.getsignal(number) for number in SIGNALS]
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)
        if current_thread() is main_thread():
            for number, handler in zip(SIGNALS, before, strict=True):
                signal.signal(number, handler)
