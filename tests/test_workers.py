"""Processes that share the work end with their parent, and say what they need of a script."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from dialdown import DialdownError
from dialdown.workers import LOSSES, default_workers, do_all, gpus
from helpers import pieces

PIECES = """
import os, sys, time
from functools import partial
from pathlib import Path
from dialdown.workers import do_all

def work(folder, piece):
    (folder / str(os.getpid())).touch()
    time.sleep(600)

def prepare(folder):
    return partial(work, folder)

GUARD
    for _ in do_all(partial(prepare, Path(sys.argv[1])), [1, 2], 2):
        pass
"""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PIECES.replace("GUARD", 'if __name__ == "__main__":'))
    (tmp_path / "pids").mkdir()
    parent = subprocess.Popen([sys.executable, script, tmp_path / "pids"])
    until = time.monotonic() + 240
    while len(workers := [int(path.name) for path in (tmp_path / "pids").iterdir()]) < 2:
        assert time.monotonic() < until
        assert parent.poll() is None
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 30
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < until, "a worker outlives its parent"
        time.sleep(0.1)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # A process that nobody waits for is dead all the same.
    status = Path(f"/proc/{process}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def test_while_libraries_are_imported_a_ctrl_c_is_the_parents_alone(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PIECES.replace("GUARD", 'if __name__ == "__main__":'))
    with subprocess.Popen(
        [sys.executable, script, tmp_path],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        until = time.monotonic() + 60
        while not any("forkserver" in " ".join(child.cmdline()) for child in children(parent)):
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(0.5)
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.stderr is not None
        said = parent.stderr.read()
    assert said.count("Traceback") == 1
    assert said.strip().endswith("KeyboardInterrupt")


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children()


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PIECES.replace("GUARD", "if True:"))
    done = subprocess.run(
        [sys.executable, script, tmp_path], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 1
    assert 'outside `if __name__ == "__main__":`' in done.stderr
    assert "memory" not in done.stderr
    # Its own words and no worker's.
    assert done.stderr.count("Traceback") <= 2


def test_a_lost_worker_costs_one_piece_which_is_done_again(tmp_path: Path) -> None:
    told: list[str] = []
    done = do_all(partial(pieces.prepare, tmp_path, deadly=1), range(6), 2, told=told.append)
    assert sorted(finished.piece for finished in done) == [*range(6)]
    assert told == ["a worker process ended by itself; what it was at was done again"]
    assert all((tmp_path / str(piece)).exists() for piece in range(6))


def test_a_piece_that_kills_every_worker_ends_the_work(tmp_path: Path) -> None:
    with pytest.raises(DialdownError, match="was killed, most likely for memory"):
        [*do_all(partial(pieces.prepare, tmp_path, deadly=9), range(1), 1)]
    assert len([*tmp_path.glob("lost-*")]) == LOSSES


def test_each_worker_sees_one_of_the_gpus(tmp_path: Path) -> None:
    [*_] = do_all(partial(pieces.prepare, tmp_path), range(8), 2, ["3", "5"])
    seen = {(tmp_path / str(piece)).read_text() for piece in range(8)}
    assert seen <= {"3", "5"}
    assert seen


def test_workers_have_the_environment_that_is_there_when_they_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("first", "second"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        [_] = do_all(partial(pieces.prepare, tmp_path), [0], 1)
        assert (tmp_path / "0").read_text() == value


def test_a_gpu_that_is_named_is_not_shared_out() -> None:
    assert gpus("cuda:1") == gpus("cpu") == []
    assert default_workers(1, "cuda", ["0", "1", "2"]) == 3
    assert default_workers(1, "cuda", []) == 1
