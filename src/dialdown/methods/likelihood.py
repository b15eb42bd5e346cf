"""One step of the natural gradient from labels alone: gains that make texts without the concept
likelier than texts with it, at a price (METHOD §8, §10).

    information = fisher_information(lm, own_text(lm))
    edit = labels_step(lm, texts, labels, information=information)

It is `natural_gradient` with labelled texts where that has preference pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import DialdownError
from ..interventions.intervention import Intervention
from ..models.lm import LM
from ..progress import Progress, with_bar
from ..training.fisher import fisher_information, margin_gradient, natural_gradient
from ..training.generated_text import own_text
from .labelled import Labels, encode_labelled


@with_bar
def labels_gradient(
    lm: LM,
    texts: Sequence[str],
    labels: Labels,
    *,
    max_tokens: int = 128,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """The derivative by every neuron's gain of the mean log-probability of a token in texts
    labelled 0, minus that in texts labelled 1; see `auroc` for the arguments.

    A text's first token, which may be a BOS, is read and not counted.

    Returns:
        (L, F) float64, in nats a token: above 0 where a higher gain favours texts without the
        concept.

    Raises:
        DialdownError: see `auroc`; a class has only texts of one token, or a gradient is not a
            finite number.
    """
    ids, toxic, _ = encode_labelled(lm, texts, labels, max_tokens)
    sides = []
    for label, of_class in ((0, ~toxic), (1, toxic)):
        sequences = [
            (text, len(text) - 1)
            for text, counts in zip(ids, of_class, strict=True)
            if counts and len(text) > 1
        ]
        if not sequences:
            raise DialdownError(
                f"No text labelled {label} has a token after its first, so none can be made "
                "likelier: pass longer texts."
            )
        sides.append((sequences, sum(counted for _, counted in sequences)))
    return margin_gradient(lm, sides, batch_size=8, progress=progress)


@with_bar
def labels_step(
    lm: LM,
    texts: Sequence[str],
    labels: Labels,
    *,
    information: NDArray[np.float64] | None = None,
    kl: float = 0.01,
    max_tokens: int = 128,
    seed: int = 0,
    progress: Progress | None = None,
) -> Intervention:
    """The gains that favour texts without the concept most at a given KL, to first order, of kind
    `scale`; nothing is trained, and no pairs are needed.

    Args:
        lm, texts, labels, max_tokens, progress: see `labels_gradient`.
        information: (L, F) what a gain costs, from `fisher_information`; by default that on text of
            the model's own, sampled with `seed`.
        kl: see `natural_gradient`.

    Raises:
        DialdownError: see `labels_gradient` and `natural_gradient`.
    """
    worth = labels_gradient(lm, texts, labels, max_tokens=max_tokens, progress=progress)
    if information is None:
        own = own_text(lm, seed=seed, progress=progress)
        information = fisher_information(lm, own, seed=seed, progress=progress)
    return natural_gradient(lm, worth, information, kl=kl, name="labels")
