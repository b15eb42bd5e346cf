"""How what an MLP writes, and what steers, reaches the final residual stream, where architectures
differ (METHOD §1, §4).
"""

from __future__ import annotations

import pytest
import torch
import transformers

import dialdown as dd
from dialdown.models import LM
from helpers import tiny


def unusual(name: str) -> LM:
    """A model that not every transformers has."""
    if not hasattr(transformers, tiny.UNUSUAL[name][0]):
        pytest.skip(f"this transformers has no {name}")
    return tiny.lm(name)


def final_residual(lm: LM) -> torch.Tensor:
    """What the last call of the final norm reads, (positions, d)."""
    seen: list[torch.Tensor] = []
    handle = lm.view.final_norm.register_forward_hook(
        lambda module, args, out: seen.append(args[0][0].double())
    )
    tiny.logits(lm, tiny.random_ids(1, 7))
    handle.remove()
    return seen[-1]


@pytest.mark.parametrize("name", ["nanochat", "dory"])
def test_steering_acts_once_where_the_final_norm_is_used_before_too(name: str) -> None:
    lm = unusual(name)
    direction = dd.random_direction(lm)
    before = final_residual(lm)
    with dd.steer(direction, 0.5).applied(lm):
        moved = final_residual(lm) - before
    expected = torch.as_tensor(-0.5 * direction.vector).expand_as(moved)
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=1e-4)
