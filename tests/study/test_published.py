"""The paper's own figures."""

from __future__ import annotations

import pytest

from dialdown.neurons import GROUPS
from dialdown.study import published


def test_published_figures_are_there_for_all_four_models() -> None:
    for model in published.MODELS:
        for quantity in (
            "groups",
            "toxic_neurons",
            "mlp",
            "kl_weight",
            "steering",
            "correlations",
            "shifts",
        ):
            assert published.figure(model, quantity)
        shares = published.figure(model, "groups") or {}
        assert sum(shares[name] for name in GROUPS) == pytest.approx(1, abs=0.002)
        assert published.figure(model, "steering")[0]["alpha"] == published.figure(
            model, "steering_alpha"
        )
        # Table 12's first strength is table 2's row.
        toxicity = (published.row(model, "steer_probe") or {})["toxicity"]
        assert published.figure(model, "steering")[0]["toxicity"] == toxicity
    assert published.figure("own", "groups") is published.figure(None, "groups") is None
    assert published.figure("google/gemma-2-2b", "sign_conflicts") is None
    assert published.row("gpt2-medium", "edit_probe_scale") is None
