"""`dialdown detox` on the files of a tiny study, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import Result

from helpers.commands import invoke


def detox(study_file: Path, out: Path, *more: object) -> Result:
    return invoke("detox", study_file.parent / "model", "--out", out, "--config", study_file, *more)


def work_of(out: Path) -> Path:
    return out.with_name(f"{out.name}-work")


def stages(out: Path) -> Any:
    return json.loads((work_of(out) / "run.json").read_text())["stages"]


def finished(result: Result, out: Path) -> bool:
    """Whether a folder was written, with the exit status that its own check asks for."""
    change = stages(out)["check"]["change"]
    less = change["high"] < 0 and change["n"] >= 10
    assert result.exit_code == (0 if less else 3), result.exception
    return (out / "model.safetensors").exists()
