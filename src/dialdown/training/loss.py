"""The loss of METHOD §8, DPO with a KL term, and the KL on other text that neuron gains have beside
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.kl import kl_divergence
from .settings import KLDirection, KLPositions

IGNORED = -100


@dataclass(frozen=True)
class LossParts:
    """The loss of one batch of B pairs and what it is made of.

    Attributes:
        loss: scalar, `dpo` + γ·(`kl_chosen` + `kl_rejected`).
        dpo: scalar, the preference term.
        kl_chosen, kl_rejected: scalars in nats, KL⁺ and KL⁻.
        rewards_chosen, rewards_rejected: (B,), β times the log ratio of policy and reference;
            detached.
    """

    loss: Tensor
    dpo: Tensor
    kl_chosen: Tensor
    kl_rejected: Tensor
    rewards_chosen: Tensor
    rewards_rejected: Tensor


def kl_dpo_loss(
    policy: Tensor,
    reference: Tensor,
    labels: Tensor,
    *,
    beta: float,
    kl_weight: float,
    direction: KLDirection,
    positions: KLPositions,
) -> LossParts:
    """DPO plus γ times the divergence from the reference on both continuations (METHOD §8).

    The KL of a sequence is its mean over that sequence's positions; KL⁺ and KL⁻ are means over the
    B sequences, so each pair weighs the same however long it is and however pairs are split into
    batches. With "completion" the positions are those that predict a completion token: neither
    prompt nor padding counts. With "all" they are every position given, prompt and padding
    included, as in the authors' code: the value then depends on the padding of the batch.

    Args:
        policy, reference: (2B, T, V) logits, the B chosen sequences first; computed in float32.
        labels: (2B, T) ids; the completion token that a position predicts, or -100 where it
            predicts none.
        beta: β of METHOD §8.
        kl_weight: γ; at 0 the KL is measured but has no gradient.
        direction: KL(π_ref ‖ π) or KL(π ‖ π_ref), over the full vocabulary.
        positions: which positions the KL is a mean of.
    """
    counted = torch.ones_like(labels, dtype=torch.bool) if positions == "all" else labels != IGNORED
    targets = labels[counted]
    log_policy = policy[counted].float().log_softmax(-1)
    log_reference = reference[counted].float().log_softmax(-1)

    def sums(per_position: Tensor) -> Tensor:
        zeros = torch.zeros(counted.shape, device=counted.device)
        return zeros.masked_scatter(counted, per_position).sum(-1)

    def log_probability(log_probs: Tensor) -> Tensor:
        picked = log_probs.gather(-1, targets.clamp(min=0)[:, None]).squeeze(-1)
        return sums(picked.masked_fill(targets == IGNORED, 0.0))

    ratios = log_probability(log_policy) - log_probability(log_reference)
    ratios_chosen, ratios_rejected = ratios.chunk(2)
    dpo = -F.logsigmoid(beta * (ratios_chosen - ratios_rejected)).mean()
    with torch.set_grad_enabled(torch.is_grad_enabled() and kl_weight > 0):
        p, q = log_reference, log_policy
        if direction == "policy_reference":
            p, q = q, p
        of_sequences = sums(kl_divergence(p, q)) / counted.sum(-1)
        kl_chosen, kl_rejected = (half.mean() for half in of_sequences.chunk(2))
    loss = dpo + kl_weight * (kl_chosen + kl_rejected) if kl_weight > 0 else dpo
    rewards = beta * ratios_chosen.detach(), beta * ratios_rejected.detach()
    return LossParts(loss, dpo, kl_chosen, kl_rejected, *rewards)


@dataclass(frozen=True)
class OwnTextKL:
    """Text that training should leave as it is: the KL(π_ref ‖ π) on some of it is part of the loss
    of every step.

    Attributes:
        texts: token ids, of one length.
        weight: what the KL, in nats per position, counts in the loss.
        per_step: texts in each step, which takes the next ones in order, and the first again after
            the last. The batches of one accumulated step share them.
        given: how many tokens each text begins with that were not drawn from the model; what it
            says before the last of them does not count.
    """

    texts: Sequence[Sequence[int]]
    weight: float
    per_step: int = 4
    given: int = 1

    def of_step(self, step: int) -> list[list[int]]:
        """The texts of a step, counted from 0: they depend on nothing else, so a resumed run has
        the same.
        """
        first = step * self.per_step
        return [
            list(self.texts[place % len(self.texts)])
            for place in range(first, first + self.per_step)
        ]
