"""Whether vLLM reads an exported checkpoint as transformers does: its log-probabilities against the
hooked base model's.
"""

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
from typing import Any

import psutil
import torch
from torch import Tensor

from ..files import read_json
from . import vllm_scores

# Two programs round alike nowhere: vLLM has kernels of its own, may multiply in TF32 on a GPU, and
# keeps in float32 some numbers that transformers rounds to 16 bits. An edit that is left out or
# misread moves these by far more.
ENGINES_DIFFER = 0.05
ENGINE_BYTES = 3 << 30  # vLLM itself, and its keys and values
SECONDS = 1800


@dataclass(frozen=True)
class VllmCheck:
    """What vLLM made of a checkpoint, in float32.

    Attributes:
        version: of vLLM; None where it does not run here at all.
        compared: how many log-probabilities: at each position, those of vLLM's twenty likeliest
            next tokens, and of the one that follows.
        difference: the largest absolute difference of any; NaN where there is none to compare.
        tolerance: the largest that is accepted.
        problem: why vLLM did not run, or, where it ran on the base, not on the checkpoint.
    """

    version: str | None
    compared: int
    difference: float
    tolerance: float
    problem: str | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing was found to be wrong: a vLLM that does not run on the base either says
        nothing about an edit.
        """
        return self.version is None or self.difference <= self.tolerance  # a NaN does not pass

    def __str__(self) -> str:
        if self.version is None:
            return f"not verified in vLLM, which did not run: {self.problem}"
        if self.problem is not None:
            return f"vLLM {self.version} runs the base and not the edited model: {self.problem}"
        return f"in vLLM {self.version} a log-probability differs by up to {self.difference:.2g}"


def installed() -> bool:
    """Whether vLLM is there."""
    return find_spec("vllm") is not None


def check_in_vllm(
    folder: Path,
    base: Path,
    ids: Sequence[Sequence[int]],
    logits: Sequence[Tensor],
    *,
    dtype: torch.dtype,
    tolerance: float,
) -> VllmCheck:
    """Compare a checkpoint in vLLM with the logits that it should have.

    Args:
        folder: of the checkpoint.
        base: the base's folder, which tells whose fault it is where vLLM does not run on the
            checkpoint.
        ids: the token ids of each text.
        logits: (tokens, V) float32 of each text, of the hooked base model.
        dtype: of the checkpoint.
        tolerance: how much a logit may differ in transformers.

    Returns:
        what was compared, or what went wrong.
    """
    # A log-probability is the difference of a logit and the logarithm of a sum over all, of which
    # either may be off.
    tolerance = 2 * tolerance + ENGINES_DIFFER
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    needed, free = 4 * stored // dtype.itemsize + ENGINE_BYTES, psutil.virtual_memory().available
    if not torch.cuda.is_available() and free < needed:
        problem = f"it needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
        return VllmCheck(None, 0, math.nan, tolerance, problem)
    found = _scores(folder, ids)
    if "problem" in found:
        version = _scores(base, ids).get("version")
        return VllmCheck(version, 0, math.nan, tolerance, found["problem"])
    differences = [
        abs(score - float(expected[token]))
        for text, of_base in zip(found["texts"], logits, strict=True)
        for position, expected in zip(text, of_base.log_softmax(-1), strict=True)
        for token, score in position
    ]
    # `max` of Python would lose a NaN.
    worst = float(torch.tensor(differences).max())
    return VllmCheck(found["version"], len(differences), worst, tolerance)


def _scores(folder: Path, ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The answer of `vllm_scores`: the scores, or a `problem`."""
    with TemporaryDirectory() as place:
        asked, answer = Path(place, "asked.json"), Path(place, "answer.json")
        asked.write_text(json.dumps({"folder": str(folder), "ids": ids}), encoding="utf-8")
        # Without its own folder among the modules' (-P), where others than vLLM's have the same
        # names.
        command = [sys.executable, "-P", vllm_scores.__file__, str(asked), str(answer)]
        try:
            run = subprocess.run(
                command,
                env={**os.environ, **vllm_scores.ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"problem": f"it took more than {SECONDS / 60:.0f} minutes"}
        # An engine may crash while it ends, with the answer given.
        if not answer.exists():
            return {"problem": f"it ended with exit status {run.returncode}"}
        found: dict[str, Any] = read_json(answer)
        return found
