"""KL between known distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dialdown.models.kl import kl_divergence


def test_kl_of_known_distributions() -> None:
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    got = kl_divergence(p.log(), q.log(), dtype=torch.float64)
    torch.testing.assert_close(
        got, torch.tensor([0.5 * np.log(2) + 0.5 * np.log(2 / 3), 0.0], dtype=torch.float64)
    )
    assert got.dtype == torch.float64


def test_a_token_that_both_models_rule_out_counts_nothing() -> None:
    p, q = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.25, 0.75, 0.0]])
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert float(kl_divergence(p.log(), q.log())) == pytest.approx(expected, rel=1e-6)
    assert float(kl_divergence(q.log(), torch.tensor([[1.0, 0.0, 0.0]]).log())) == np.inf
