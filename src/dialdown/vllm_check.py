"""Whether vLLM reads an exported checkpoint as transformers does: its log-probabilities against the hooked base model's."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch
from torch import Tensor

from . import vllm_scores
from .files import read_json

# On a GPU vLLM's kernels may multiply float32 numbers in TF32, which keeps ten bits of each.
TF32_TOLERANCE = 0.05
ENGINE_BYTES = 3 << 30  # vLLM itself, and its keys and values


@dataclass(frozen=True)
class VllmCheck:
    """What vLLM made of a checkpoint, in float32.

    Attributes:
        version: of vLLM; None where it did not run.
        compared: how many log-probabilities: at each position, those of vLLM's twenty likeliest next tokens, and of the one that follows.
        difference: the largest absolute difference of any.
        tolerance: the largest that is accepted.
        problem: why vLLM did not run, or None.
    """

    version: str | None
    compared: int
    difference: float
    tolerance: float
    problem: str | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing was found to be wrong: an engine that does not run says nothing about the checkpoint."""
        return self.problem is not None or self.difference <= self.tolerance  # a NaN does not pass

    def __str__(self) -> str:
        if self.problem is not None:
            return f"not verified in vLLM, which did not run: {self.problem}"
        return f"in vLLM {self.version}, log-probabilities differ by at most {self.difference:.1g}"


def installed() -> bool:
    """Whether vLLM is there."""
    return find_spec("vllm") is not None


def check_in_vllm(
    folder: Path, ids: Sequence[Sequence[int]], logits: Sequence[Tensor], *, dtype: torch.dtype, tolerance: float
) -> VllmCheck:
    """Compare a checkpoint in vLLM with the logits that it should have.

    Args:
        folder: of the checkpoint.
        ids: the token ids of each text.
        logits: (tokens, V) float32 of each text, of the hooked base model.
        dtype: of the checkpoint.
        tolerance: how much a logit may differ where float32 is computed in float32.
    """
    on_gpu = torch.cuda.is_available()
    # A log-probability is the difference of a logit and the logarithm of a sum over all, of which either may be off.
    tolerance = 2 * tolerance + (TF32_TOLERANCE if on_gpu else 0)
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    needed, free = 4 * stored // dtype.itemsize + ENGINE_BYTES, psutil.virtual_memory().available
    if not on_gpu and free < needed:
        problem = f"it needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
        return VllmCheck(None, 0, math.nan, tolerance, problem)
    with TemporaryDirectory() as place:
        asked, answer = Path(place, "ids.json"), Path(place, "scores.json")
        asked.write_text(json.dumps({"folder": str(folder), "ids": ids}))
        run = subprocess.run(
            # Without its own folder among the modules' (-P), where others than vLLM's have the same names.
            [sys.executable, "-P", vllm_scores.__file__, str(asked), str(answer)],
            env={**os.environ, **vllm_scores.ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if run.returncode != 0:
            return VllmCheck(None, 0, math.nan, tolerance, _reason(run))
        found = read_json(answer)
    differences = [
        abs(score - float(expected[token]))
        for text, of_base in zip(found["texts"], logits, strict=True)
        for position, expected in zip(text, of_base.log_softmax(-1), strict=True)
        for token, score in position
    ]
    # `max` of Python would lose a NaN.
    worst = float(torch.tensor(differences).max())
    return VllmCheck(found["version"], len(differences), worst, tolerance)


def _reason(run: subprocess.CompletedProcess[str]) -> str:
    """The last error that a process named, or the last thing it said."""
    lines = [line.strip() for line in run.stdout.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line]
    return (named or lines or [f"killed, exit status {run.returncode}"])[-1]
