"""run.json: the settings a folder was started with, and what each finished stage took and found."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .config import Config, differences
from .errors import DialdownError
from .files import SCHEMA, fingerprint, read_json, write_json
from .workers import peak_bytes

STAGES = ("probe", "pairs", "train", "activations", "neurons", "evaluate", "gains", "search", "front", "report")
# Of the section `evaluation`, what only the rows are measured on.
EVALUATED = (
    "judge", "control_count", "pairs", "pairs_count", "text", "window", "max_windows", "kl_windows", "neutral_tokens",
)  # fmt: skip
MEASURING = {"evaluate", "search", "dial", "check"}
# Stages that add to a finished study, and may do so again with other settings.
ADDED = ("gains", "search", "front", "report", "dial", "check")
# The stage that first reads a section of the settings; every other setting counts from the start.
FIRST_READ = {
    **dict.fromkeys(("pairs", "evaluation", "training_prompts", "tuned", "concept"), "pairs"),
    "dpo": "train",
    **dict.fromkeys(("token_judge", "interventions"), "neurons"),
    "gains": "gains",
    "search": "search",
    # The stages that only a front needs look whether there is one.
    "front": "gains",
    "detox": "dial",
}

PACKAGES = ("dialdown", "torch", "transformers", "trl", "scikit-learn", "numpy", "pyarrow", "safetensors")


@dataclass(frozen=True)
class Ledger:
    """What is written about a study in its folder.

    Attributes:
        config: the study's settings.
        folder: the study's folder.
        stages: what is done there, in order.
    """

    config: Config
    folder: Path
    stages: tuple[str, ...] = STAGES

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings as JSON. How many processes measure changes no row, so it may differ when a study goes on."""
        return self.config.model_dump(mode="json", exclude={"workers"})

    def claim(self) -> None:
        """Start a study in the folder, or go on with one whose finished stages had the same settings.

        Raises:
            DialdownError: the folder holds something else, or a study with other settings (which are named).
        """
        path = self.folder / "run.json"
        found = read_json(path) if path.exists() else None
        taken = self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir()))
        if (found is None and taken) or (found is not None and not {"config", "stages"} <= set(found)):
            raise DialdownError(f"{self.folder} exists and holds no study: pass another --out.")
        if found is None:
            write_json(path, {"schema": SCHEMA, "config": self.settings, "stages": {}})
            return
        done = [stage for stage in found["stages"] if stage not in ADDED]
        if other := sorted({*done} - {*self.stages}):
            raise DialdownError(
                f"{self.folder} holds work of another command (its stage {other[0]}): pass another --out."
            )
        last = max((self.stages.index(stage) for stage in done), default=-1)
        if changed := differences(self._until(found["config"], last), self._until(self.settings, last)):
            raise DialdownError(
                f"{self.folder} holds a study with other settings ({'; '.join(changed)}): pass another --out, or the same settings to go on with it."
            )
        if found["config"] != self.settings:
            # Settings that no finished stage has read may still be corrected, such as a count that was too high.
            write_json(path, {**found, "config": self.settings})

    def inputs(self, stage: str) -> str:
        """The hash of what a stage depends on: the settings so far, the files they name, and the version of the code."""
        settings = self._until(self.settings, self.stages.index(stage))
        return fingerprint(SCHEMA, stage, settings, file_states(settings), _version("dialdown"))

    def finished(self, stage: str) -> bool:
        """Whether a stage is done, from the same inputs."""
        stages = read_json(self.folder / "run.json")["stages"]
        return bool(stages.get(stage, {}).get("inputs") == self.inputs(stage))

    def record(self, stage: str, seconds: float, facts: Mapping[str, Any], peak_together: int = 0) -> None:
        """Write that a stage is done, with its time, the peak memory so far, and what it found.

        Args:
            stage: its name.
            seconds: what it took.
            facts: what it found.
            peak_together: the most that this process and its workers held together, in bytes.
        """
        path = self.folder / "run.json"
        run = read_json(path)
        run["versions"] = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
        run["machine"] = {"platform": platform.platform(), "threads": torch.get_num_threads()}
        peak = max(peak_bytes() or 0, peak_together)
        run["stages"][stage] = {
            "inputs": self.inputs(stage),
            "seconds": round(seconds, 2),
            "peak_memory_mb": peak >> 20 or None,
            **facts,
        }
        write_json(path, run)

    def _until(self, settings: Mapping[str, Any], place: int) -> dict[str, Any]:
        """The settings that the stages up to a place read; none where nothing was done yet (-1)."""

        def read_at(key: str) -> int:
            stage = FIRST_READ.get(key, self.stages[0])
            return self.stages.index(stage) if stage in self.stages else len(self.stages)

        used = {key: value for key, value in settings.items() if read_at(key) <= place}
        if "evaluation" in used and not {*self.stages[: place + 1]} & MEASURING:
            used["evaluation"] = {key: value for key, value in used["evaluation"].items() if key not in EVALUATED}
        return used


def file_states(settings: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Size and time of every local file that a setting names, so that a changed file is not taken for the old one."""
    found = []
    for value in settings.values():
        if isinstance(value, Mapping):
            found += file_states(value)
        elif isinstance(value, str) and (path := Path(value.partition("#")[0])).exists():
            for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                stat = file.stat()
                found.append((str(file), stat.st_size, stat.st_mtime_ns))
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
