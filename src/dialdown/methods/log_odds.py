"""One step of the natural gradient from labels alone: gains that make the words of the concept less
likely wherever a text with the concept stands, at a price (METHOD §8, §10).

    information = fisher_information(lm, own_text(lm))
    edit = labels_step(lm, texts, labels, information=information)

A token's score is how much more often it stands in texts with the concept than in others,

    s(token) = max(0, log (n1 + PSEUDO) / (n0 + PSEUDO))

and what a gain is worth is the derivative of the mean over positions of -sum_token p(token)
s(token) in texts with the concept. This asks of every position what would be drawn there, and not
whether the text itself is likely: most of a toxic comment is not what makes it toxic, and the model
would have written little of it. Of a model that is asked, the text begins in what the user says and
goes on in the reply, whose positions alone count (`Contexts`). Nothing is drawn, trained, or scored
by a classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DialdownError
from ..interventions.intervention import Intervention
from ..models.decoding import Batch, batches
from ..models.fits import check_finite
from ..models.lm import LM
from ..neurons.probe import check_labels
from ..progress import progress
from ..training.fisher import fisher_information, gain_slopes, natural_gradient
from ..training.generated_text import own_text
from .labelled import Contexts, Labels, encode_labelled

# Occurrences that every token is given in either class, as by Jeffreys' prior: of rare ones little
# is known.
PSEUDO = 0.5
# Each has a number for every token of the vocabulary.
POSITIONS_AT_ONCE = 1024


def token_scores(lm: LM, texts: Sequence[str], labels: Labels) -> NDArray[np.float64]:
    """How much more often each token stands in texts labelled 1 than in those labelled 0, (V,)
    float64: the log of the ratio, and 0 where it is below 1.

    Whole texts are counted, however long, and both classes as if they had as many tokens.

    Raises:
        DialdownError: texts and labels differ in number, or a class has fewer than 10 texts; no
            token stands more often in texts labelled 1.
    """
    check_labels(texts, labels)
    counts = np.zeros((2, lm.view.unembedding.weight.shape[0]))
    # What stands before every text would count for the class of shorter ones.
    before = len(lm.bos)
    for ids, label in zip(lm.encode(texts), labels, strict=True):
        np.add.at(counts[int(label)], ids[before:], 1.0)
    counts *= counts.sum() / 2 / counts.sum(1, keepdims=True)
    scores = np.log((counts[1] + PSEUDO) / (counts[0] + PSEUDO)).clip(0)
    if not scores.any():
        raise DialdownError(
            "No token stands more often in texts labelled 1 than in those labelled 0, so there is "
            "nothing to make less likely: pass texts of which only one class has the concept."
        )
    return np.asarray(scores)


def labels_gradient(
    lm: LM, texts: Sequence[str], labels: Labels, *, max_tokens: int = 128
) -> NDArray[np.float64]:
    """The derivative by every neuron's gain of the mean of -sum_token p(token) s(token) over the
    positions of texts labelled 1, which are read to their first `max_tokens`; see `auroc` for the
    arguments.

    Returns:
        (L, F) float64: above 0 where a higher gain makes the tokens of the concept less likely.

    Raises:
        DialdownError: see `encode_labelled` and `token_scores`; a gradient is not a finite number.
    """
    _, toxic, _ = encode_labelled(lm, texts, labels, max_tokens)
    scores = torch.as_tensor(token_scores(lm, texts, labels), dtype=torch.float32, device=lm.device)
    contexts = Contexts.of(
        lm, [text for text, counts in zip(texts, toxic, strict=True) if counts], max_tokens
    )
    total = torch.zeros(lm.view.shape, dtype=torch.float64, device=lm.device)
    done, positions = 0, 0
    size = max(1, POSITIONS_AT_ONCE // max(map(len, contexts.ids)))
    for batch in batches(lm, contexts.ids, size):
        own = contexts.own(batch)
        total -= gain_slopes(lm, partial(_expected_score, lm, batch, own, scores))
        done, positions = done + len(batch.rows), positions + int(own.sum())
        progress("reading labelled texts", done, len(contexts.ids))
    check_finite(lm, total)
    return np.asarray((total / positions).cpu().numpy())


def _expected_score(lm: LM, batch: Batch, own: Tensor, scores: Tensor) -> Tensor:
    """sum_token p(token) s(token), summed over the model's `own` positions in a batch."""
    logits = lm.model(**batch.inputs, use_cache=False).logits
    expected: Tensor = logits.float().softmax(-1) @ scores
    return expected[own].sum()


def labels_step(
    lm: LM,
    texts: Sequence[str],
    labels: Labels,
    *,
    information: NDArray[np.float64] | None = None,
    kl: float = 0.01,
    max_tokens: int = 128,
    seed: int = 0,
) -> Intervention:
    """The gains that make the tokens of the concept less likely most at a given KL, to first order,
    of kind `scale`; nothing is trained, and no pairs are needed.

    Args:
        lm, texts, labels, max_tokens: see `labels_gradient`.
        information: (L, F) what a gain costs, from `fisher_information`; by default that on text of
            the model's own, sampled with `seed`.
        kl: see `natural_gradient`.

    Raises:
        DialdownError: see `labels_gradient` and `natural_gradient`.
    """
    worth = labels_gradient(lm, texts, labels, max_tokens=max_tokens)
    if information is None:
        windows = own_text(lm, seed=seed)
        information = fisher_information(lm, windows, seed=seed)
    return natural_gradient(lm, worth, information, kl=kl, name="labels")
