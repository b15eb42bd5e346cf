"""Ctrl-C, which a terminal sends to every process of a command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from helpers import tiny


def started_command(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dialdown", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_ranks_that_are_interrupted_end_with_a_sentence_and_leave_no_process(
    study_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = ["--set=dpo.processes=2", "--set=dpo.epochs=10000"]
    with started_command("run", study_file, *settings, "--out", run, "--until=train") as process:
        assert process.stdout is not None
        next(line for line in process.stdout if "train: training" in line)
        started = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        last = process.stdout.read().strip().splitlines()[-1]
    assert len(started) >= 2
    assert process.returncode == 130
    assert last == f"Interrupted: what is finished is in {run}; rerun the same command to resume."
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive


def test_ctrl_c_ends_the_app(tmp_path: Path) -> None:
    tiny.lm("llama").model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    with started_command("app", tmp_path / "model") as process:
        assert process.stdout is not None
        next(line for line in process.stdout if "is open at" in line)
        os.killpg(process.pid, signal.SIGINT)
        try:
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert said.strip().endswith("Closed.")
