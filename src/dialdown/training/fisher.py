"""What a gain costs and what it is worth, to first order at gains of 1: one pass of gradients each,
and nothing trained.

    information = fisher_information(lm, own_text(lm))               # (L, F)
    worth = preference_gradient(lm, pairs)                           # (L, F)
    edit = natural_gradient(lm, worth, information, kl=0.01)

With a gain of 1 + delta_i on every neuron, the divergence from the base model grows with the square
of delta, and what tells preferred from dispreferred continuations (the margin of METHOD §8 without
beta) in proportion to it:

    KL(base || edited) ~ 1/2 sum_i F_i delta_i^2
    margin             ~     sum_i g_i delta_i
    F_i = E[(d log p(y) / d gain_i)^2]  for y drawn from the base model
    g_i = d/d gain_i E[log p(preferred) - log p(dispreferred)]

So the largest margin at a given KL has delta_i in proportion to g_i / F_i: the natural gradient. F
is its diagonal, with each position's gain by itself: what gains of several neurons or positions
cost together is left out, and as they push one way, a measured KL is several times the diagonal's
(six times on the embedded model). It is taken on text that the model writes by itself, over which a
KL of language models is an expectation: priced on text of one kind, neurons that only other text
needs look free, and the training uses them up (docs/lab-log.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.pairs import Pair
from ..errors import DialdownError
from ..interventions.explain import as_scale
from ..interventions.intervention import Intervention
from ..models.decoding import Batch, batches
from ..models.fits import check_counts, check_finite, check_neurons
from ..models.forward_pass import frozen, last_positions
from ..models.hooks import neuron_hooks
from ..models.lm import LM
from ..models.tokens import encode_continuations
from ..progress import progress
from .generated_text import check_ids, given_tokens
from .settings import check_positive

# Each of their positions has gains of its own: what is kept grows with their number.
WINDOWS_AT_ONCE = 8


def fisher_information(
    lm: LM, windows: Sequence[Sequence[int]], *, draws: int = 2, seed: int = 0
) -> NDArray[np.float64]:
    """F_i of every neuron's gain: the expected squared derivative of the log-probability of a
    token, per position that a model writes at.

    The tokens are drawn from the model's own predictions on the windows, so this is the curvature
    of the KL and not of the loss on the text.

    Args:
        lm: the model.
        windows: token ids of text, from `own_text` or `text_windows`.
        draws: how often tokens are drawn for each window.
        seed: of the draws.

    Returns:
        (L, F) float64, in nats; 0 where a neuron is silent on the text.

    Raises:
        DialdownError: no windows, or a prediction or gradient that is not a finite number.
    """
    check_counts(draws=draws)
    if not windows:
        raise DialdownError("There is no text to price gains on: pass windows from own_text.")
    check_ids(lm, windows)
    generator = torch.Generator(device=lm.device).manual_seed(seed)
    total = torch.zeros(lm.view.shape, dtype=torch.float64, device=lm.device)
    done, first = 0, given_tokens(lm, windows) - 1
    for _, alike in groupby(map(list, windows), len):
        ids = torch.tensor([*alike], device=lm.device)
        for batch in torch.split(ids, WINDOWS_AT_ONCE):
            total += _squared_slopes(lm, batch, first, draws, generator)
            done += len(batch)
            progress("pricing gains", done, len(windows))
    check_finite(lm, total)
    positions = draws * sum(len(window) - first for window in windows)
    return np.asarray((total / positions).cpu().numpy())


def _squared_slopes(
    lm: LM, ids: Tensor, first: int, draws: int, generator: torch.Generator
) -> Tensor:
    """(L, F) float64: the squared derivatives of the log-probability of drawn tokens, summed over
    the positions of windows (batch, positions) from `first` on and over the draws.
    """
    with _gains(lm, *ids.shape) as gains:
        logits = lm.model(input_ids=ids, use_cache=False).logits[:, first:]
        check_finite(lm, logits)
        log_probs = logits.float().log_softmax(-1)
        flat = log_probs.flatten(0, 1)
        total = torch.zeros(1, dtype=torch.float64, device=lm.device)
        for draw in range(draws):
            drawn = torch.multinomial(flat.detach().exp(), 1, generator=generator)
            grads = torch.autograd.grad(
                flat.gather(-1, drawn).sum(), gains, retain_graph=draw + 1 < draws
            )
            squares = [grad.double().square().sum((0, 1)).to(total.device) for grad in grads]
            total = total + torch.stack(squares)
    return total


def preference_gradient(
    lm: LM, pairs: Sequence[Pair], *, batch_size: int = 8
) -> NDArray[np.float64]:
    """g_i of every neuron's gain: the derivative of log p(preferred) - log p(dispreferred), mean
    over the pairs.

    DPO's loss has this gradient at its first step, times -beta / 2 (METHOD §8).

    Args:
        lm: the model.
        pairs: preference pairs; `chosen` is the preferred side.
        batch_size: continuations per pass.

    Returns:
        (L, F) float64, in nats: above 0 where a higher gain favours the preferred side.

    Raises:
        DialdownError: no pairs, a pair without a prompt or a continuation, one longer than the
            context, or a gradient that is not a finite number.
    """
    prompts = [pair.prompt for pair in pairs]
    sides = [[pair.chosen for pair in pairs], [pair.rejected for pair in pairs]]
    total = torch.zeros(lm.view.shape, dtype=torch.float64, device=lm.device)
    done = 0
    for sign, side in zip((1, -1), sides, strict=True):
        sequences = encode_continuations(lm, prompts, side)
        for batch in batches(lm, [ids for ids, _ in sequences], batch_size):
            lengths = [sequences[row][1] for row in batch.rows]
            total += sign * gain_slopes(lm, partial(_log_probability, lm, batch, lengths))
            done += len(batch.rows)
            progress("following preferences", done, 2 * len(pairs))
    check_finite(lm, total)
    return np.asarray((total / len(pairs)).cpu().numpy())


def gain_slopes(lm: LM, value: Callable[[], Tensor]) -> Tensor:
    """The derivative by every neuron's gain of what `value` reads of the model, (L, F) float64."""
    with _gains(lm) as gains:
        grads = torch.autograd.grad(value(), gains)
    return torch.stack([grad.double().to(lm.device) for grad in grads])


def natural_gradient(
    lm: LM,
    worth: NDArray[np.float64],
    information: NDArray[np.float64],
    *,
    kl: float,
    damping: float = 0.1,
    name: str = "natural_gradient",
) -> Intervention:
    """The gains 1 + t * g_i / (F_i + damping * mean F), at the t whose diagonal's KL is `kl`;
    nothing is trained.

    Args:
        lm: the model.
        worth: (L, F) g_i, from `preference_gradient`.
        information: (L, F) F_i, from `fisher_information`.
        kl: 1/2 sum_i F_i delta_i^2, the diagonal's KL in nats per token of the text that was
            priced; several times that is measured.
        damping: keeps neurons that are nearly silent on neutral text, whose price is hardly known,
            from being free.
        name: the name its results carry.

    Returns:
        An intervention of kind `scale`; gains below 0 are set to 0. Its record has `margin`, the
        predicted change of log p(preferred) - log p(dispreferred), and `clipped` (how many), both
        before clipping.

    Raises:
        DialdownError: arrays of another shape, a KL that cannot work, gains that are worth nothing;
            see `damped`.
    """
    for what, array in (("worth", worth), ("information", information)):
        check_neurons(lm, array.shape, f"`{what}` has", "make it on this model")
    check_positive("Gains cannot be made", kl=kl)
    step = worth / damped(information, damping)
    price = 0.5 * float((information * step**2).sum())
    if not price > 0:
        raise DialdownError(
            f"No gain of {lm.name} that costs anything favours the preferred continuations: pass "
            "pairs that differ."
        )
    change = np.sqrt(kl / price) * step
    record = {
        "base": lm.describe(),
        "kl": kl,
        "damping": damping,
        "margin": float((worth * change).sum()),
        "clipped": int((change < -1).sum()),
    }
    return as_scale(name, np.maximum(1 + change, 0), record)


class NaturalGradientOptimizer(torch.optim.Optimizer):
    """Steps of one length where length is what they cost: p <- p - lr * (grad / price) / sqrt(sum
    grad^2 / price), over all weights.

    With F as the price, a step has a diagonal's KL of lr^2 / 2 (see the module's head), whatever
    the loss is multiplied by.

    Args:
        prices: each weight with a price, above 0, for every number of it.
        lr: the length of a step.
    """

    def __init__(self, prices: Sequence[tuple[Tensor, Tensor]], lr: float) -> None:
        super().__init__([weight for weight, _ in prices], {"lr": lr})
        self.prices = [price for _, price in prices]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step, along the gradients as they are."""
        loss = None if closure is None else closure()
        (group,) = self.param_groups
        moved = [
            (weight, weight.grad / price)
            for weight, price in zip(group["params"], self.prices, strict=True)
        ]
        parts = [(weight.grad.double() * step).sum() for weight, step in moved]
        # Read at once, from layers that may lie on several GPUs: each look makes one wait.
        squared = sum(torch.stack([part.to(parts[0].device) for part in parts]).tolist())
        if squared > 0:
            for weight, step in moved:
                weight.sub_(step, alpha=group["lr"] / math.sqrt(squared))
        return loss


def damped(information: NDArray[np.float64], damping: float) -> NDArray[np.float64]:
    """F_i + damping * mean F: the price of a gain, also of a neuron nearly silent on the text,
    whose F is hardly known.
    """
    check_positive("Gains have no price", damping=damping)
    if not information.mean() > 0:
        raise DialdownError(
            "No gain costs anything on the text, so gains have no price: pass text that the "
            "neurons act on."
        )
    return np.asarray(information + damping * information.mean())


def _log_probability(lm: LM, batch: Batch, lengths: Sequence[int]) -> Tensor:
    """Log-probability of the last `lengths[r]` tokens of every row r, summed over the batch."""
    longest = max(lengths)
    # The last token of every row is produced and produces nothing.
    keep = last_positions(longest, batch.ids.device)
    logits = lm.model(**batch.but_last.inputs, use_cache=False, logits_to_keep=keep).logits
    log_probs: Tensor = (
        logits.float().log_softmax(-1).gather(-1, batch.ids[:, -longest:, None])[..., 0]
    )
    from_end = torch.arange(longest, 0, -1, device=log_probs.device)
    counted = from_end <= torch.tensor(lengths, device=log_probs.device)[:, None]
    return log_probs.masked_fill(~counted, 0).sum()


@contextmanager
def _gains(lm: LM, *positions: int) -> Iterator[list[Tensor]]:
    """Gains of 1 on every neuron of every layer, (*positions, F) each, that a gradient can be taken
    by; gone afterwards.
    """
    gains: list[Tensor] = []
    with frozen(lm.model), neuron_hooks(lm, lambda layer, m: m * gains[layer]):
        for layer in lm.view.layers:
            like = layer.columns
            gain = torch.ones(*positions, lm.view.n_neurons, dtype=like.dtype, device=like.device)
            gains.append(gain.requires_grad_(True))
        yield gains
