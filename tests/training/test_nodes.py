"""Training by several machines, which are here two launchers on one (docs/cluster.md)."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dialdown import DialdownError
from dialdown.progress import progress_to
from dialdown.training import DPOSettings, launch
from helpers import rank_work
from helpers.rank_work import SETTINGS, Place

TWO = replace(SETTINGS, nodes=2)
JOIN_WITH_A_GPU = """
import sys
from functools import partial
from dialdown.training.launch import join
from dialdown.training.ranks import take_part
if __name__ == "__main__":
    join(partial(take_part, False), sys.argv[1], nodes=2, processes=1)
"""


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", port)
    return f"localhost:{port}"


@contextmanager
def other_machine(address: str, gpu: bool = False) -> Iterator[subprocess.Popen[str]]:
    """`dialdown join` in a process of its own, or what it does where there is a GPU."""
    given = [sys.executable, "-m", "dialdown", "join", address]
    if gpu:
        given = [sys.executable, "-c", JOIN_WITH_A_GPU, address]
    # What ranks are to do is a function of the tests' own helpers.
    paths = [*sys.path, str(Path(__file__).parents[1])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen(
        given, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as joined:
        try:
            yield joined
        finally:
            joined.kill()


def test_two_machines_train_as_one_process_does(address: str, tmp_path: Path) -> None:
    """One training after the other, for which the other machine waits."""
    base = rank_work.base(tmp_path / "base")
    alone = Place(base, tmp_path / "alone").dpo()
    told: list[str] = []
    with other_machine(address) as joined:
        with progress_to(lambda what, done, total: told.append(what)):
            first = Place(base, tmp_path / "first").dpo(TWO)
        second = Place(base, tmp_path / "second").dpo(TWO)
        joined.send_signal(signal.SIGINT)
        printed, _ = joined.communicate(timeout=30)
    for log in (first, second):
        assert log.loss == pytest.approx(alone.loss, abs=1e-5)
        assert log.eval_loss == pytest.approx(alone.eval_loss, abs=1e-5)
        assert log.best_step == alone.best_step
    assert told[0] == f"waiting for 1 more to run `dialdown join {address}`"
    assert joined.returncode == 130
    assert printed.count(f"waiting for a training at {address}") >= 2
    assert "Traceback" not in printed


def test_machines_with_and_without_a_gpu_are_told_at_once(address: str, tmp_path: Path) -> None:
    base = rank_work.base(tmp_path / "base")
    refused = r"Rank 0 trains on a .PU and rank 1 on a .PU, and all must on one kind"
    with other_machine(address, gpu=True) as joined:
        with pytest.raises(DialdownError, match=refused):
            Place(base, tmp_path / "first").dpo(TWO)
        printed, _ = joined.communicate(timeout=30)
    assert re.search(refused, printed)


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", "29400"), ("localhost", "port")])
def test_an_address_that_is_not_this_machines_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, port: str
) -> None:
    base = rank_work.base(tmp_path / "base")
    # The first is for documentation, and no machine has it.
    monkeypatch.setenv("MASTER_ADDR", host)
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(DialdownError, match=f"cannot join this one at {host}:{port} .*MASTER_ADDR"):
        Place(base, tmp_path).dpo(TWO)


@pytest.mark.parametrize("at", ["head", "head:", ":29400", "head:port"])
def test_no_address_to_join_is_refused(at: str) -> None:
    with pytest.raises(DialdownError, match=r"is not an address to join: pass HOST:PORT"):
        launch.join(print, at, nodes=2, processes=1)


def test_a_batch_is_shared_out_among_all_machines() -> None:
    with pytest.raises(DialdownError, match="batch_size = 4 cannot be shared out among 6 ranks"):
        DPOSettings(batch_size=4, nodes=3, processes=2)
    assert replace(TWO, nodes=1).recipe == TWO.recipe
