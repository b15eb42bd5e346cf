"""How one direction per layer reads, against sums written here (METHOD §8)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dialdown.interventions.explain import as_rank_one
from dialdown.interventions.rank_one import RankOne
from dialdown.models.sites import projections
from dialdown.neurons import Direction
from dialdown.study.rank_one import mean_inputs, rank_one_layers
from helpers import tiny

TEXTS = tiny.random_ids(11, 7).tolist()


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_a_layer_is_read_by_its_heads_and_what_it_writes_on_average(name: str) -> None:
    lm = tiny.lm(name)
    site = projections(lm, "attention")
    seen: list[torch.Tensor] = []
    handles = [
        projection.linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].double()))
        for projection in site
    ]
    for text in TEXTS:
        tiny.logits(lm, torch.tensor([text]))
    for handle in handles:
        handle.remove()
    expected = [
        torch.cat([m[0] for m in seen[index :: len(site)]]).mean(0).numpy()
        for index in range(len(site))
    ]
    means = mean_inputs(lm, TEXTS, "attention")
    np.testing.assert_allclose(means, expected, rtol=1e-4, atol=1e-6)

    rng = np.random.default_rng(0)
    shape = (lm.view.n_layers, tiny.WIDTH)
    reads, writes = rng.standard_normal(means.shape), rng.standard_normal(shape)
    probe = Direction("probe", rng.standard_normal(tiny.WIDTH), "residual")
    edit = as_rank_one("it", RankOne(reads, writes, "attention"), {})
    table = rank_one_layers(lm, edit, means, probe)
    for row in table.iter_rows(named=True):
        layer = row["layer"]
        gain = site[layer].post_norm_gain()
        v = writes[layer] * (1 if gain is None else gain.double().numpy())
        written = v * sum(u * m for u, m in zip(reads[layer], means[layer], strict=True))
        assert row["norm"] == pytest.approx(np.linalg.norm(written))
        cosine = written @ probe.vector / np.linalg.norm(written) / np.linalg.norm(probe.vector)
        assert row["cosine"] == pytest.approx(cosine)
        # Two heads of half the channels each.
        first, second = np.abs(reads[layer] * means[layer]).reshape(2, -1).sum(1)
        assert row["heads"] == ("0 1" if first >= second else "1 0")
        assert row["share"] == pytest.approx(max(first, second) / (first + second))
