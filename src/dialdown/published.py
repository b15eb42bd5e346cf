"""The paper's own figures (arXiv 2411.06424), for the models it studied; all follow the `paper` protocol (METHOD §5)."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

MODELS = {
    "gpt2-medium": "gpt2-medium",
    "openai-community/gpt2-medium": "gpt2-medium",
    "meta-llama/llama-3.1-8b": "llama-3.1-8b",
    "google/gemma-2-2b": "gemma-2-2b",
    "mistralai/mistral-7b-v0.1": "mistral-7b",
}
"""Hub ids, in lower case, to the names the figures are filed under."""

# The strengths of the three published edits are not stated (METHOD §4), so an edit of ours stands beside all three.
EDITS = {"edit_probe_set": "edit_probe", "edit_probe_free_set": "edit_probe_free"}


def row(model: str, intervention: str) -> dict[str, tuple[float, ...]] | None:
    """Table 2 for one intervention: `toxicity`, `log_ppl` and `f1`, one value each, or three for an edit (METHOD §4).

    Returns:
        None where the paper has no such model or intervention.
    """
    name, figures = MODELS.get(model.lower()), _figures()
    names = [f"{EDITS[intervention]}_{number}" for number in (1, 2, 3)] if intervention in EDITS else [intervention]
    if name is None or not all(one in figures["rows"] for one in names):
        return None
    columns = zip(*(figures["rows"][one][name] for one in names), strict=True)
    return dict(zip(figures["metrics"], columns, strict=True))


def groups(model: str) -> dict[str, float] | None:
    """Table 5: the share of each group of METHOD §3 among the neurons of all four; None for another model."""
    found: dict[str, float] | None = _figures()["groups"].get(MODELS.get(model.lower()))
    return found


def probe_accuracy(model: str) -> float | None:
    """Table 11: the probe's validation accuracy (METHOD §2); None for another model."""
    found: float | None = _figures()["probe_accuracy"].get(MODELS.get(model.lower()))
    return found


@cache
def _figures() -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((resources.files("dialdown") / "published.json").read_text(encoding="utf-8"))
    return figures
