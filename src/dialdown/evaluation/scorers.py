"""How toxic a text is, as a probability: what a scorer is, and which one a name stands for
(METHOD §6).

`embedded:ngram` is the default judge, `embedded:minilm` a second opinion and the scorer that makes
preference pairs. Anything else is a sequence classifier of transformers, or one's own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from ..errors import DialdownError, nearest
from .classifier_scorer import ClassifierScorer
from .embedded_scorers import EMBEDDED, embedded_scorer
from .judging import Scores
from .plugin import NAMED, own


class Scorer(Protocol):
    """What judges texts; `record` says how it was made and how it does on held-out texts."""

    @property
    def name(self) -> str:
        """The source `load_scorer` takes."""

    @property
    def caveat(self) -> str:
        """What it is known to get wrong, one sentence to show beside its numbers; may be empty."""

    @property
    def record(self) -> Mapping[str, Any]:
        """Held-out AUC, numbers of texts, versions, seed; or model and label."""

    def score(self, texts: Sequence[str]) -> Scores:
        """Probability of toxicity per text, float64, shape (n,); exactly 0 for a blank text."""


def load_scorer(source: str, *, texts: str = "embedded:comments", device: str = "cpu") -> Scorer:
    """The scorer `source` names (METHOD §6), trained first where the cache lacks it.

    `texts` are the labelled texts of the study's concept. `embedded:minilm` is trained on them, so
    that it scores whatever they are labelled with (`embedded:imdb`: negativity); `embedded:ngram`
    knows toxicity only.

    Sources: `embedded:ngram`, `embedded:minilm`, or a sequence classifier by hub id or folder, with
    the label after `#` (`unitary/toxic-bert#toxic`); without `#`, the label `toxicity` or `toxic`;
    or `package.module:name`, a scorer of one's own (see `Scorer`).

    Raises:
        DialdownError: the name is unknown, the model cannot be loaded, is not a trained classifier
            or lacks the label.
    """
    if (source, texts) in EMBEDDED:
        return embedded_scorer(source, texts, device)
    names = {name for name, _ in EMBEDDED}
    if source in names:
        raise DialdownError(
            f"{source} knows toxicity, not what {texts!r} is labelled with: pass a classifier as "
            "HUB_ID#LABEL, or in the settings of a study 'probe'."
        )
    if NAMED.fullmatch(source):
        return cast(Scorer, own(source, "scorer", ("name", "caveat", "record", "score")))
    model, _, label = source.partition("#")
    if model.startswith("embedded:") or ("/" not in model and not os.path.exists(model)):
        known = (*sorted(names, reverse=True), "unitary/toxic-bert")
        raise DialdownError(f"There is no toxicity scorer {source!r}: {nearest(source, known)}")
    return ClassifierScorer.load(model, label or None, device=device)
