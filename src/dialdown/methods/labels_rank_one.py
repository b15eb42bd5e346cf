"""One direction per layer from labels alone: a matrix of rank one added to each output projection
of attention, or down projection, trained towards what the model would say if the words of the
concept were no more frequent where a text with it stands than in other texts, and held near the
model on text of its own (METHOD §8, §10).

    edit = labels_rank_one(lm, texts, labels)

With s from `token_scores`, so that exp(-s) is how much rarer a token is in other texts,

    loss = KL(tilted || edited) on texts with the concept + weight * KL(base || edited) on own text,
    tilted(token) proportional to base(token) exp(-s(token))

`labels_step` follows the gradient of the expected s for one step; trained on to its end, that makes
a model say anything but these words, and repeat itself. Here all others keep their proportions. No
pairs are made, no text is scored by a classifier. A short training held tightly finds the better
direction and goes a small part of the way, so what it found is then given a strength of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..interventions.explain import as_rank_one
from ..interventions.intervention import Intervention
from ..interventions.rank_one import RankOne
from ..models.decoding import batches
from ..models.forward_pass import frozen
from ..models.hooks import input_hooks, output_hooks
from ..models.kl import kl_divergence
from ..models.lm import LM
from ..models.projection import Projection
from ..models.protocol import Site
from ..models.sites import projections
from ..training.generated_text import given_tokens, own_text, own_text_kl
from ..training.rank_one import unit_of
from ..training.settings import check_positive
from .labelled import Contexts, Labels, encode_labelled, minimise
from .log_odds import token_scores

# Texts read at once; each position has a number for every token.
BATCH = 16


def labels_rank_one(
    lm: LM,
    texts: Sequence[str],
    labels: Labels,
    *,
    site: Site = "attention",
    steps: int = 33,
    batch_size: int = BATCH,
    learning_rate: float = 3e-3,
    own: Sequence[Sequence[int]] | None = None,
    own_kl_weight: float = 2.0,
    kl: float = 0.01,
    max_tokens: int = 128,
    seed: int = 0,
) -> Intervention:
    """What each layer reads and writes, by AdamW with a falling rate: a `rank_one` intervention.

    Args:
        lm, texts, labels, max_tokens: see `labels_gradient`.
        site: which linear layers learn; see `train_rank_one`.
        steps: of the training.
        batch_size: texts with the concept in a step.
        learning_rate: by which share of its own norm the first step changes each weight matrix.
        own: token ids of texts of one length, from `own_text`; by default 96 of 64 tokens, drawn
            with `seed`.
        own_kl_weight: what the KL counts in the loss, in nats per position.
        kl: what the edit costs on the own text at strength 1, by the square of what it costs as it
            was trained.
        seed: of the draws.

    Raises:
        DialdownError: a setting that cannot train; see `labels_gradient` and `projections`.
    """
    settings = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    check_positive("Directions cannot be learned", **settings, own_kl_weight=own_kl_weight, kl=kl)
    layers = projections(lm, site)
    _, toxic, record = encode_labelled(lm, texts, labels, max_tokens)
    with_concept = [text for text, counts in zip(texts, toxic, strict=True) if counts]
    contexts = Contexts.of(lm, with_concept, max_tokens)
    tilt = torch.as_tensor(token_scores(lm, texts, labels), dtype=torch.float32, device=lm.device)
    own = own_text(lm, texts=96, tokens=64, seed=seed) if own is None else own
    held = own_text_kl(lm, own, own_kl_weight)
    assert held is not None
    size, drawn = min(batch_size, len(with_concept)), np.random.default_rng(seed)

    def loss(step: int) -> Tensor:
        rows = drawn.choice(len(with_concept), size, replace=False)
        batch = contexts.chosen(rows.tolist())
        on_own_text = _own_kl(lm, held.of_step(step), directions)
        return _gap(lm, batch, tilt, directions) + held.weight * on_own_text

    with frozen(lm.model):
        directions = Directions.new(layers, seed)
        optimizer = torch.optim.AdamW(directions.learned, weight_decay=0.0)
        rates = [learning_rate * (1 - step / steps) for step in range(steps)]
        minimise(lm, optimizer, loss, rates, "learning directions")
        trained_kl = _trained_kl(lm, own, directions)
    scaled = RankOne(*directions.vectors(), site).at((kl / trained_kl) ** 0.5)
    record |= {**settings, "own_kl_weight": own_kl_weight, "kl": kl, "trained_kl": trained_kl}
    return as_rank_one("labels_rank_one", scaled, {**record, "seed": seed})


@dataclass(frozen=True)
class Directions:
    """What is learned: u (L, inputs) and v (L, d), float32, v in the units of its layer."""

    layers: Sequence[Projection]
    u: Tensor
    v: Tensor
    units: Tensor

    @classmethod
    def new(cls, layers: Sequence[Projection], seed: int) -> Directions:
        """u small and random, as of LoRA, and v zero."""
        width, inputs = layers[0].columns.shape
        device = layers[0].columns.device
        drawn = torch.Generator().manual_seed(seed)
        u = (2 * torch.rand(len(layers), inputs, generator=drawn) - 1) / inputs**0.5
        v = torch.zeros(len(layers), width)
        units = torch.tensor([[unit_of(projection)] for projection in layers])
        u, v, units = (tensor.to(device) for tensor in (u, v, units))
        return cls(layers, u.requires_grad_(), v.requires_grad_(), units)

    @property
    def learned(self) -> list[Tensor]:
        """The parameters."""
        return [self.u, self.v]

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Add what each layer writes along v, with a gradient."""
        sums: dict[int, Tensor] = {}

        def read(layer: int, m: Tensor) -> None:
            sums[layer] = m.to(self.u.dtype) @ self.u[layer]

        def write(layer: int, out: Tensor) -> Tensor:
            along = self.units[layer] * self.v[layer]
            return (out.to(along.dtype) + sums.pop(layer)[..., None] * along).to(out)

        writers = {index: projection.linear for index, projection in enumerate(self.layers)}
        with input_hooks(self.layers, read), output_hooks(writers, write):
            yield

    def vectors(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """u and v, float64."""
        u, v = self.u.detach().double(), (self.units * self.v).detach().double()
        return u.cpu().numpy(), v.cpu().numpy()


def _gap(lm: LM, contexts: Contexts, tilt: Tensor, directions: Directions) -> Tensor:
    """KL(tilted ‖ edited), the mean over the positions of some texts."""
    (batch,) = batches(lm, contexts.ids, len(contexts.ids))
    own = contexts.own(batch)

    def logits() -> Tensor:
        whole: Tensor = lm.model(**batch.inputs, use_cache=False).logits
        return whole[own].float()

    with torch.no_grad():
        tilted = (logits() - tilt).log_softmax(-1)
    with directions.acting():
        return kl_divergence(tilted, logits().log_softmax(-1)).mean()


@torch.no_grad()
def _trained_kl(lm: LM, own: Sequence[Sequence[int]], directions: Directions) -> float:
    """What the directions cost on all of the own text."""
    costs = [_own_kl(lm, [text], directions) for text in own]
    return float(torch.stack(costs).double().mean())


def _own_kl(lm: LM, texts: Sequence[Sequence[int]], directions: Directions) -> Tensor:
    """The mean KL over the positions of what the model wrote itself."""
    ids, given = torch.tensor(texts, device=lm.device), given_tokens(lm, texts)

    def log_probabilities() -> Tensor:
        logits: Tensor = lm.model(input_ids=ids, use_cache=False).logits[:, given - 1 :]
        return logits.float().log_softmax(-1)

    with torch.no_grad():
        base = log_probabilities()
    with directions.acting():
        return kl_divergence(base, log_probabilities()).mean()
