"""The benchmarks that need a GPU run to their end on a CPU, with a tiny shape."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_every_stage_of_the_gpu_benchmark_is_measured() -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu.py", "--shape", "tiny"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert [row["stage"] for row in facts["rows"]] == [
        "decode",
        "decode with means",
        "a row, the first",
        "a row, the next",
        "fold",
        "hook against fold",
        "a batch of pairs",
        "prices of gains",
        "2 steps of gains",
        "2 steps of DPO, LoRA of rank 16",
    ]
    assert all(row["seconds"] > 0 and row["limit"] > 0 for row in facts["rows"])
