"""The stages of a study by name, without what they import."""

from __future__ import annotations

from typing import Literal, get_args

Stage = Literal[
    "probe",
    "base",
    "pairs",
    "train",
    "activations",
    "neurons",
    "evaluate",
    "gains",
    "step",
    "front",
    "report",
]
STAGES: tuple[str, ...] = get_args(Stage)
