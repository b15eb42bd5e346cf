"""One direction per layer on tiny random models: what is trained, against a float64 gradient
written here, and what comes out (METHOD §8).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import dialdown as dd
from dialdown import DialdownError
from dialdown.interventions import RankOne
from dialdown.models import LM
from dialdown.models.protocol import Site
from dialdown.models.sites import projections
from dialdown.training import RankOneSettings, train_rank_one
from helpers import tiny
from helpers.edits import IDS, make
from helpers.pairs import PAIRS, TEXTS, log_probability
from helpers.tiny import unchanged

# One step on all pairs but the one that is held out, and no KL.
PLAIN = RankOneSettings(
    kl_weight=0, learning_rate=1e-3, batch_size=6, max_steps=1, eval_pairs=1, max_grad_norm=1e9
)
QUICK = RankOneSettings(batch_size=2, epochs=6, eval_every=100, eval_pairs=1)


def gradient(lm: LM, edit: RankOne, held_out: int, beta: float) -> np.ndarray:
    """The gradient of plain DPO by what each layer writes, at zero, in float64: (L, d)."""
    twin, base = lm.twin(), lm.twin().model.double()
    twin.model.double().requires_grad_(False)
    writes = []
    for layer, u in zip(projections(twin, edit.site), edit.reads, strict=True):
        v = torch.zeros(lm.view.d_model, dtype=torch.float64, requires_grad=True)
        writes.append(v)
        layer.linear.register_forward_hook(
            lambda module, args, out, u=u, v=v: out + (args[0] @ torch.tensor(u))[..., None] * v
        )
    total = torch.zeros((), dtype=torch.float64)
    for pair in [*PAIRS[:held_out], *PAIRS[held_out + 1 :]]:
        ratios = [
            log_probability(twin.model, lm.tokenizer, pair, text)
            - log_probability(base, lm.tokenizer, pair, text).detach()
            for text in (pair.chosen, pair.rejected)
        ]
        total = total - F.logsigmoid(beta * (ratios[0] - ratios[1]))
    total.backward()
    return np.stack([v.grad.numpy() for v in writes])


SITES = pytest.mark.parametrize("site", get_args(Site))


@SITES
def test_the_first_step_goes_against_the_gradient_of_the_loss(
    named: LM, tmp_path: Path, site: Site
) -> None:
    with unchanged(named):
        edit, log = train_rank_one(named, PAIRS, PLAIN, tmp_path / "out", site=site, texts=TEXTS)
    assert (edit.kind, log.steps) == ("rank_one", 1)
    assert edit.rank_one is not None
    matches = []
    for held_out in range(len(PAIRS)):
        slope = gradient(named, edit.rank_one, held_out, PLAIN.beta)
        large = np.abs(slope) > 1e-3 * np.abs(slope).max()
        matches.append((np.sign(edit.rank_one.writes[large]) == -np.sign(slope[large])).all())
    assert any(matches)
    # Adam's first step has the length of the learning rate wherever there is a gradient, and v is
    # counted in what makes v u^T that share of the weight, for u of its first size.
    for projection, v in zip(projections(named, site), edit.rank_one.writes, strict=True):
        columns = projection.columns
        first = torch.full_like(columns[:1], (3 * columns.shape[1]) ** -0.5)
        step = torch.full_like(columns[:, :1], np.abs(v).max())
        share = float((step @ first).norm() / columns.norm())
        assert share == pytest.approx(1e-3, rel=1e-3)


def test_the_rate_falls_to_zero(llama: LM, tmp_path: Path) -> None:
    settings = replace(PLAIN, max_steps=2, learning_rate=1e-4)
    edit, _ = train_rank_one(llama, PAIRS, settings, tmp_path / "out", texts=TEXTS)
    assert edit.rank_one is not None
    # Adam's steps along one gradient have the length of the rate: all of it, then a half.
    whole, _ = train_rank_one(
        llama, PAIRS, replace(settings, max_steps=1), tmp_path / "one", texts=TEXTS
    )
    assert whole.rank_one is not None
    ratio = np.abs(edit.rank_one.writes).max(1) / np.abs(whole.rank_one.writes).max(1)
    np.testing.assert_allclose(ratio, 1.5, rtol=0.02)


@SITES
def test_training_prefers_what_is_preferred_and_folds(
    named: LM, tmp_path: Path, site: Site
) -> None:
    settings = replace(QUICK, learning_rate=5e-2)
    edit, log = train_rank_one(named, PAIRS, settings, tmp_path / "out", site=site, texts=TEXTS)
    assert np.mean(log.dpo_loss[-2:]) < 0.95 * log.dpo_loss[0]
    assert log.kl_own[0] == pytest.approx(0, abs=1e-6)
    assert log.kl_own[-1] > 0
    assert edit.neurons == (np.prod(named.view.shape) if site == "mlp" else 0)
    ids = tiny.random_ids(2, 12)
    with edit.applied(named):
        hooked = tiny.logits(named, ids)
    torch.testing.assert_close(tiny.logits(edit.fold(named), ids), hooked, atol=1e-4, rtol=1e-4)
    assert not torch.equal(hooked, tiny.logits(named, ids))


def test_the_same_call_has_the_same_result(llama: LM, tmp_path: Path) -> None:
    first, log = train_rank_one(llama, PAIRS, QUICK, tmp_path / "one", texts=TEXTS)
    again, _ = train_rank_one(llama, PAIRS, QUICK, tmp_path / "two", texts=TEXTS)
    assert first.key == again.key
    # A finished one returns what it left.
    assert train_rank_one(llama, PAIRS, QUICK, tmp_path / "one", texts=TEXTS)[1] == log
    other, _ = train_rank_one(llama, PAIRS, replace(QUICK, seed=1), tmp_path / "3", texts=TEXTS)
    assert other.key != first.key


def test_in_16_bits_what_is_trained_is_float32(tmp_path: Path) -> None:
    half = tiny.lm("llama", dtype=torch.bfloat16)
    edit, _ = train_rank_one(half, PAIRS, QUICK, tmp_path / "out", texts=TEXTS)
    assert edit.rank_one is not None
    for numbers in (edit.rank_one.reads, edit.rank_one.writes):
        assert not np.array_equal(
            numbers, torch.tensor(numbers).to(torch.bfloat16).double().numpy()
        )


@pytest.mark.parametrize("kind", ["scale", "steer"])
@pytest.mark.parametrize(
    ("train", "settings"),
    [
        (dd.train_dpo, dd.DPOSettings()),
        (dd.train_gains, dd.GainSettings()),
        (train_rank_one, dd.RankOneSettings()),
    ],
)
def test_nothing_is_trained_under_the_hooks_of_an_intervention(
    llama: LM, tmp_path: Path, kind: str, train: Any, settings: dd.DPOSettings
) -> None:
    with make(llama, kind).applied(llama):
        tiny.logits(llama, IDS)
        with pytest.raises(DialdownError, match="cannot be trained while"):
            train(llama, PAIRS, settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "texts", "sentence"),
    [
        ({"own_kl_weight": -1.0}, TEXTS, "An edit cannot be trained with own_kl_weight = -1.0"),
        ({"optimizer": "natural"}, TEXTS, "optimizer='rmsprop' or 'adamw'"),
        ({}, [], "0 texts of lengths .* pass texts=own_text"),
    ],
)
def test_what_cannot_train_is_one_sentence(
    llama: LM, tmp_path: Path, change: dict[str, object], texts: list[list[int]], sentence: str
) -> None:
    with pytest.raises(DialdownError, match=sentence):
        train_rank_one(llama, PAIRS, dd.RankOneSettings(**change), tmp_path / "out", texts=texts)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
