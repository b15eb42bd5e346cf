"""The paper's own figures (arXiv 2411.06424), for the models it studied; all follow the `paper`
protocol (METHOD §5).
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any, Literal

MODELS = {
    "gpt2-medium": "gpt2-medium",
    "openai-community/gpt2-medium": "gpt2-medium",
    "meta-llama/llama-3.1-8b": "llama-3.1-8b",
    "google/gemma-2-2b": "gemma-2-2b",
    "mistralai/mistral-7b-v0.1": "mistral-7b",
}
"""Hub ids, in lower case, to the names the figures are filed under."""

NAMES = {
    "gpt2-medium": "GPT-2 medium",
    "llama-3.1-8b": "Llama 3.1 8B",
    "gemma-2-2b": "Gemma 2 2B",
    "mistral-7b": "Mistral 7B",
}
"""The names the figures are filed under to those that are read."""

STRENGTHS = ((0.8, 0.05), (0.55, 0.01), (0.5, 0.05), (0.4, 0.05))
"""α and β that the published edits are taken to have, strongest first: the text gives ranges, the
authors' files the fractions .5, .55 and .8 and the factors 1 ± .05 and 1 ± .01; which row has which
is inferred from their order (METHOD §4)."""

EDITS = {
    "edit_probe_set": ("edit_probe_1", "edit_probe_2", "edit_probe_3", "edit_probe_cosine_4"),
    "edit_probe_free_set": ("edit_probe_free_1", "edit_probe_free_2", "edit_probe_free_3"),
    "edit_probe_activation_set": tuple(
        f"edit_probe_activation_{number}" for number in (1, 2, 3, 4)
    ),
}
"""Published edits by family, in the order of STRENGTHS; `activation` chooses the least active
neurons (table 19)."""

CLAIMS = {
    "Aligned neurons explain little": (
        "The neurons most aligned with toxicity account for little of DPO’s reduction: those "
        "judged toxic for 0.4% to 19.7%, the 256 most aligned for 2.5% to 23.9% (table 3)."
    ),
    "Opposing effects": (
        "Besides the neurons that reduce toxicity a comparable share increases it: 51.75% to "
        "58.49% of all neurons reduce it (table 18)."
    ),
    "Four groups replicate DPO": (
        "Patching all four groups lowers toxicity about as far as DPO: further in two of four "
        "models, 0.015 and 0.037 less far in the others (table 2)."
    ),
    "Editing beats DPO": (
        "An edit that needs no tuned model lowers toxicity further than DPO at a lower "
        "log-perplexity: the strongest probe-based one in all four models (table 2)."
    ),
    "Perplexity is preserved": (
        "Patching and editing preserve log-perplexity: patching all four groups moves it by "
        "−0.03 to +0.02 nats (table 2)."
    ),
    "The effect is specific to the direction": (
        "Toxicity falls because of what the chosen neurons write along the concept direction; "
        "the random controls are this study’s (METHOD §5)."
    ),
}
"""Claim to what the paper found, in its own figures."""

Quantity = Literal[
    "groups",
    "toxic_neurons",
    "mlp",
    "kl_weight",
    "probe_accuracy",
    "steering_alpha",
    "steering",
    "negative_share",
    "correlations",
    "reducing_share",
    "sign_conflicts",
    "shifts",
]


def row(
    model: str, family: str, *, alpha: float | None = None, beta: float | None = None
) -> dict[str, float] | None:
    """Tables 2 and 19 for an intervention: `toxicity`, `log_ppl` and `f1`.

    Args:
        model: a hub id, or a key of `NAMES`.
        family: the intervention's.
        alpha, beta: its strength; an edit stands beside the published one of that strength alone,
            and steering, whose unit is the probe's own, has one of each model.

    Returns:
        None where the paper has no such model, intervention or strength.
    """
    name, stated = _filed(model), figures()
    if edits := EDITS.get(family):
        strengths = dict(zip(STRENGTHS, edits, strict=False))
        family = strengths.get((alpha or 0.0, beta or 0.0), "")
    values = stated["rows"].get(family, {}).get(name)
    return dict(zip(stated["metrics"], values, strict=True)) if values else None


def figure(model: str | None, quantity: Quantity) -> Any:
    """What the paper states of a model, by its hub id or a key of `NAMES`, besides its
    interventions; None where it states nothing.

    Returns:
        By quantity: `groups` (table 5) shares of the four and their `count`; `toxic_neurons` (table
        3) `neurons` and `share` for `judged` and `top`; `mlp` (table 8) as in `tables.table_8_mlp`;
        `kl_weight` (table 10); `probe_accuracy` and `steering_alpha` (table 11); `steering` (table
        12) one dict per alpha; `negative_share` (table 13) of the base model; `correlations` (table
        17) `r`, and `p` as printed; `reducing_share` (table 18); `sign_conflicts` (appendix G);
        `shifts` (section 5.1, figure 4) `value_cosine` and `percent`. A shift is before - after.
    """
    return figures()[quantity].get(_filed(model or ""))


def _filed(model: str) -> str:
    return MODELS.get(model.lower(), model)


@cache
def figures() -> dict[str, Any]:
    """All of published.json."""
    stated: dict[str, Any] = json.loads(
        (resources.files("dialdown.study") / "published.json").read_text(encoding="utf-8")
    )
    return stated
