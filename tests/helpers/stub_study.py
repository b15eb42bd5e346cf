"""A study without a model, and a disk's damage to its files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dialdown.files import write_arrays, write_json, write_sealed, write_text
from dialdown.study import Config, Study
from dialdown.study.context import Workspace


@dataclass
class StubStudy:
    """A study of three stages without a model: it counts what it does, and may find another
    direction.
    """

    folder: Path
    config: Config
    done: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    direction: float = 1.0
    meanwhile: Callable[[], None] = lambda: None

    def run(self) -> list[str]:
        """Run it, and give the stages that were done."""
        self.done.clear()
        self.said.clear()
        stages = {"probe": self.probe, "pairs": self.pairs, "train": self.train}
        Study(self.config, self.folder, announce=self.said.append, stages=stages).run()
        return [*self.done]

    def probe(self, work: Workspace) -> dict[str, Any]:
        self.done.append("probe")
        self.meanwhile()
        write_arrays(
            self.folder / "direction-probe.safetensors",
            "direction",
            {"vector": np.full(3, self.direction)},
            {},
        )
        return {"auc": 0.9}

    def pairs(self, work: Workspace) -> dict[str, Any]:
        self.done.append("pairs")
        for start in range(2):
            write_sealed(self.folder / "pairs" / f"{start}.json", {"prompts": ["a"]})
        write_text(self.folder / "pairs.jsonl", f"{self.direction}\n")
        return {}

    def train(self, work: Workspace) -> dict[str, Any]:
        self.done.append("train")
        # As a training that finds its finished folder does.
        if not (self.folder / "tuned" / "training.json").exists():
            write_text(self.folder / "tuned" / "model.safetensors", f"{self.direction} weights")
            write_json(self.folder / "tuned" / "training.json", {"seconds": time.perf_counter()})
        return {}


def flip(path: Path, place: int = -2) -> None:
    """Change a bit as a disk would, which leaves size and time alone."""
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
