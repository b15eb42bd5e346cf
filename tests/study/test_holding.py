"""One command at a time works in a folder, and a killed one holds nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dialdown import DialdownError
from dialdown.report.stage import report_again
from dialdown.study import Config
from dialdown.study.holding import held
from helpers.stub_study import StubStudy, flip


def test_a_second_command_is_told_who_is_at_work(small: Config, tmp_path: Path) -> None:
    study = StubStudy(tmp_path / "run", small)
    refusals: list[str] = []

    def second() -> None:
        for command in (StubStudy(study.folder, small).run, lambda: report_again(study.folder)):
            with pytest.raises(DialdownError) as refused:
                command()
            refusals.append(str(refused.value))

    study.run()
    study.meanwhile = second
    flip(study.folder / "direction-probe.safetensors")
    assert study.run() == ["probe"]
    assert len(refusals) == 2
    assert all(
        f"in use by process {os.getpid()} on {os.uname().nodename} since 2" in said
        for said in refusals
    )


HOLDER = """
import sys, time
from pathlib import Path
from dialdown.study.holding import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_command_holds_nothing(study: StubStudy) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(study.folder)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(DialdownError, match=f"in use by process {process.pid} "):
            study.run()
        process.kill()
    assert study.run() == []


def test_a_folder_is_held_by_one_at_a_time_and_then_free(tmp_path: Path) -> None:
    with held(tmp_path):
        with pytest.raises(DialdownError, match="in use"), held(tmp_path):
            pass
        # Who was refused took nothing from who holds it.
        with pytest.raises(DialdownError, match=f"process {os.getpid()}"), held(tmp_path):
            pass
    with held(tmp_path):
        pass
