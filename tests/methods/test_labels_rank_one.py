"""Directions from labels beside their loss, written out text by text with weights in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

import dialdown as dd
from dialdown import methods
from dialdown.interventions import Intervention
from dialdown.models import LM
from dialdown.models.sites import projections
from helpers import tiny
from helpers.labelled import LABELS, TEXTS, TOXIC

OWN = [[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8], [9, 7, 9, 3, 2, 3], [8, 4, 6, 2, 6, 4]]


class Reference:
    """The loss of u and v, with v in units of its layer."""

    def __init__(self, lm: LM, site: Any, weight: float) -> None:
        self.twin, self.weight = lm.twin(), weight
        self.twin.model.double()
        self.layers = projections(self.twin, site)
        self.scores = torch.as_tensor(methods.token_scores(lm, TEXTS, LABELS))
        # A first step of the rate changes each matrix by that share of its norm, with |u|^2 = 1/3.
        self.units = [
            (3 / layer.columns.shape[0]) ** 0.5 * layer.columns.norm() for layer in self.layers
        ]

    def weights(self, u: Tensor, v: Tensor) -> dict[str, Tensor]:
        changed = {}
        for row, (layer, unit) in enumerate(zip(self.layers, self.units, strict=True)):
            added = torch.outer(unit * v[row], u[row])
            added = added.T if isinstance(layer.linear, Conv1D) else added
            changed[f"{layer.path}.weight"] = layer.linear.weight.detach() + added
        return changed

    def log_probabilities(self, ids: list[int], changed: dict[str, Tensor]) -> Tensor:
        logits = functional_call(self.twin.model, changed, (torch.tensor([ids]),)).logits
        return logits[0].log_softmax(-1)

    def gap(self, texts: list[str], changed: dict[str, Tensor]) -> Tensor:
        """KL to the tilted predictions, over the positions of all texts."""
        gaps = []
        for ids in self.twin.encode(texts):
            tilted = self.log_probabilities(ids, {}).exp() * (-self.scores).exp()
            tilted = tilted / tilted.sum(-1, keepdim=True)
            gaps.append((tilted * (tilted.log() - self.log_probabilities(ids, changed))).sum(-1))
        return torch.cat(gaps).mean()

    def kl(self, ids: list[int], changed: dict[str, Tensor]) -> Tensor:
        p, q = self.log_probabilities(ids, {}), self.log_probabilities(ids, changed)
        return (p.exp() * (p - q)).sum(-1).mean()

    def loss(self, texts: list[str], u: Tensor, v: Tensor) -> Tensor:
        changed = self.weights(u, v)
        kl = torch.stack([self.kl(ids, changed) for ids in OWN])
        return self.gap(texts, changed) + self.weight * kl.mean()


def as_trained(edit: Intervention, reference: Reference) -> tuple[Tensor, Tensor]:
    """u and v in units of its layer, as far as they were trained."""
    assert edit.rank_one is not None
    scale = (edit.record["kl"] / edit.record["trained_kl"]) ** 0.5
    u, v = torch.as_tensor(edit.rank_one.reads), torch.as_tensor(edit.rank_one.writes)
    return u, v / scale / torch.stack(reference.units)[:, None]


@pytest.mark.parametrize("site", ["attention", "mlp"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_steps_are_those_of_adamw_on_the_gradient_of_the_whole_loss(name: str, site: Any) -> None:
    lm, rate, steps, size = tiny.lm(name, bos=True), 0.03, 3, 5
    given: dict[str, Any] = {"site": site, "own": OWN, "own_kl_weight": 3.0, "seed": 2}
    edit = methods.labels_rank_one(
        lm, TEXTS, LABELS, steps=steps, batch_size=size, learning_rate=rate, **given
    )
    reference = Reference(lm, site, 3.0)
    width, inputs = reference.layers[0].columns.shape
    generator = torch.Generator().manual_seed(2)
    u = (2 * torch.rand(len(reference.layers), inputs, generator=generator) - 1) / inputs**0.5
    u, v = u.double().requires_grad_(), torch.zeros(len(u), width, dtype=torch.float64)
    optimizer = torch.optim.AdamW([u, v.requires_grad_()], lr=rate, weight_decay=0)
    drawn = np.random.default_rng(2)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        texts = [TOXIC[row] for row in drawn.choice(len(TOXIC), size, replace=False)]
        optimizer.zero_grad()
        reference.loss(texts, u, v).backward()
        optimizer.step()
    read, written = as_trained(edit, reference)
    for got, expected in ((read, u), (written, v)):
        # A slope near 0 has a sign of its own in float32, and Adam goes as far by it.
        close = torch.isclose(got, expected.detach(), atol=3e-4, rtol=0)
        assert close.float().mean() > 0.95, (got - expected).abs().max()
    assert (edit.kind, edit.name) == ("rank_one", "labels_rank_one")


def test_predictions_come_near_the_tilted_ones_and_the_kl_holds_it_back(llama: LM) -> None:
    reference = Reference(llama, "attention", 0.0)

    def reached(weight: float) -> tuple[float, float]:
        edit = methods.labels_rank_one(
            llama, TEXTS, LABELS, steps=40, learning_rate=0.05, own=OWN, own_kl_weight=weight
        )
        changed = reference.weights(*as_trained(edit, reference))
        with torch.no_grad():
            share = reference.gap(TOXIC, changed) / reference.gap(TOXIC, {})
            held = [
                torch.nn.functional.kl_div(
                    reference.log_probabilities(ids, changed),
                    reference.log_probabilities(ids, {}),
                    log_target=True,
                    reduction="batchmean",
                )
                for ids in OWN
            ]
        return float(share), float(torch.stack(held).mean())

    # One direction per layer can do little for a random model.
    free, held = reached(1e-9), reached(30.0)
    assert free[0] < 0.96
    assert held[0] < 1
    assert held[1] < 0.5 * free[1]


def test_draws_come_from_the_seed_whatever_the_caller_does_with_gradients(llama: LM) -> None:
    def learn(seed: int) -> Intervention:
        return methods.labels_rank_one(llama, TEXTS, LABELS, steps=2, batch_size=4, seed=seed)

    first, other = learn(0), learn(1)
    with torch.inference_mode():
        assert learn(0).key == first.key != other.key
    learnt = {"steps": 2, "batch_size": 4, "learning_rate": 0.003, "own_kl_weight": 2.0, "seed": 0}
    assert learnt.items() <= first.record.items()
    assert all(weight.requires_grad for weight in tiny.lm("llama").model.parameters())


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch_size": -1},
        {"learning_rate": float("nan")},
        {"own_kl_weight": 0.0},
        {"kl": -1.0},
    ],
)
def test_settings_that_cannot_learn_are_refused(llama: LM, wrong: dict[str, Any]) -> None:
    with pytest.raises(dd.DialdownError, match=f"with {next(iter(wrong))} = .* above 0"):
        methods.labels_rank_one(llama, TEXTS, LABELS, **wrong)


def test_strength_1_costs_the_kl_asked_for_on_own_text(llama: LM) -> None:
    reference = Reference(llama, "attention", 0.0)

    def costs(kl: float) -> tuple[float, float]:
        edit = methods.labels_rank_one(llama, TEXTS, LABELS, steps=20, own=OWN, kl=kl)
        u, v = as_trained(edit, reference)
        wide = (kl / edit.record["trained_kl"]) ** 0.5
        with torch.no_grad():
            by_scale = [
                np.mean([float(reference.kl(ids, reference.weights(u, scale * v))) for ids in OWN])
                for scale in (1.0, wide)
            ]
        assert by_scale[0] == pytest.approx(edit.record["trained_kl"], rel=1e-3)
        return by_scale[1] / kl, wide

    # Near the model the KL goes with the square.
    near, _ = costs(1e-4)
    assert near == pytest.approx(1, rel=0.1)
    assert costs(4e-4)[1] == pytest.approx(2 * costs(1e-4)[1])
