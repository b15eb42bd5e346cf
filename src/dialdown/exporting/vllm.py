"""Whether vLLM reads an exported checkpoint as transformers does: its log-probabilities against the
hooked base model's. Asked for by `--verify vllm`.

The engine takes memory, threads and signals for itself, so it runs in a process of its own
(`vllm_engine`).
"""

from __future__ import annotations

import json
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

from ..errors import DialdownError

# Two programs round alike nowhere: vLLM has kernels of its own, may multiply in TF32 on a GPU, and
# keeps in float32 some numbers that transformers rounds to 16 bits. An edit that is left out or
# misread moves these by far more.
ENGINES_DIFFER = 0.05
ENGINE_BYTES = 3 << 30  # vLLM itself, and its keys and values
SECONDS = 1800
ENGINE = "dialdown.exporting.vllm_engine"
# The engine in that process, and no word to anybody.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True)
class VllmCheck:
    """What vLLM made of a checkpoint, in float32.

    Attributes:
        version: of vLLM.
        compared: how many log-probabilities: at each position, those of vLLM's twenty likeliest
            next tokens, and of the one that follows.
        difference: the largest absolute difference of any; NaN where there is one.
        tolerance: the largest that is accepted.
    """

    version: str
    compared: int
    difference: float
    tolerance: float

    def __str__(self) -> str:
        return f"in vLLM {self.version} a log-probability differs by up to {self.difference:.2g}"


def check_vllm(size: int, dtype: torch.dtype) -> None:
    """Refuse a verification in vLLM where it is not installed, or has not the memory for it
    (DialdownError), of a checkpoint of `size` bytes in `dtype`.
    """
    if find_spec("vllm") is None:
        raise DialdownError(
            "The export cannot be verified in vLLM, which is not installed: run pip install vllm, "
            "or verify it in transformers alone (--verify, or verify=True)."
        )
    needed, free = 4 * size // dtype.itemsize + ENGINE_BYTES, psutil.virtual_memory().available
    if not torch.cuda.is_available() and free < needed:
        raise DialdownError(
            f"vLLM needs {needed / 1e9:.1f} GB of memory for this model, and {free / 1e9:.1f} GB "
            "are free: verify it in transformers alone (--verify, or verify=True)."
        )


def compare_in_vllm(
    folder: Path,
    base: Path,
    ids: Sequence[Sequence[int]],
    logits: Sequence[Tensor],
    *,
    tolerance: float,
) -> VllmCheck:
    """Compare a checkpoint in vLLM with the logits that it should have.

    Args:
        folder, base: of the checkpoint, and of its base, which tells whose fault it is where vLLM
            does not run (DialdownError).
        ids: the token ids of each text.
        logits: (tokens, V) float32 of each text, of the hooked base model.
        tolerance: how much a logit may differ in transformers.
    """
    answer = _scores(folder, ids)
    if problem := answer.get("problem"):
        version = _scores(base, ids).get("version")
        if version is None:
            raise DialdownError(
                f"vLLM does not run here, not on the base either ({problem}): verify the export in "
                "transformers alone (--verify, or verify=True)."
            )
        raise DialdownError(
            f"vLLM {version} runs the base and not the edited model ({problem}): leave "
            "verification out (--no-verify, or verify=False) to write it and look."
        )
    differences = [
        abs(score - float(expected[token]))
        for text, of_base in zip(answer["texts"], logits, strict=True)
        for position, expected in zip(text, of_base.log_softmax(-1), strict=True)
        for token, score in position
    ]
    # `max` of Python would lose a NaN.
    worst = float(torch.tensor(differences).max())
    # A log-probability is the difference of a logit and the logarithm of a sum over all, of which
    # either may be off.
    return VllmCheck(answer["version"], len(differences), worst, 2 * tolerance + ENGINES_DIFFER)


def _scores(folder: Path, ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What the engine answers: the scores, or a `problem`."""
    with TemporaryDirectory() as place:
        answer = Path(place, "answer.json")
        try:
            # Without the working directory among the modules' (-P).
            run = subprocess.run(
                [sys.executable, "-P", "-m", ENGINE, str(folder), json.dumps(ids), str(answer)],
                env={**os.environ, **ENVIRONMENT},
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
        output: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return output
