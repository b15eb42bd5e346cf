"""The study's own probe as a scorer, for any concept that has labelled texts and no classifier of
its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.special import expit

from ..errors import DialdownError
from ..models.fits import check_width
from ..models.hooks import acted_on
from ..models.lm import LM
from ..neurons.directions import Direction
from ..neurons.probe import probe_features
from .judging import Scores, of_texts


@dataclass(frozen=True, eq=False)
class ProbeScorer:
    """sigma(W x + b) of the base model's mean final-layer residual stream over a text's real tokens
    (METHOD §2, §5 `strict`).

    Attributes:
        lm: the base model that the probe was trained on.
        direction: its probe, site `residual`, as `train_probe` or `fit_probe` gives it.

    Raises:
        DialdownError: the direction is not a strict probe, has no intercept, or is of a model of
            another width.
    """

    lm: LM
    direction: Direction

    name: ClassVar[str] = "probe"
    caveat: ClassVar[str] = (
        "The probe judges by the very direction that neurons are edited along, so it favours these "
        "edits: believe it only as far as a second judge agrees."
    )

    def __post_init__(self) -> None:
        """Refuse what cannot score (see above)."""
        direction = self.direction
        if (direction.name, direction.site) != ("probe", "residual"):
            raise DialdownError(
                f"The direction {direction.name!r} at the site {direction.site!r} gives no "
                "probability: pass a probe of the strict protocol."
            )
        if "intercept" not in direction.record:
            raise DialdownError(
                "The probe was saved without its intercept, so its scores would be off by a "
                "constant: train it again."
            )
        trained_on = "pass the model it was trained on"
        check_width(self.lm, direction.vector.size, "The probe has", trained_on)

    @property
    def record(self) -> Mapping[str, Any]:
        """The probe's own validation, under the names every scorer uses, and how it was trained."""
        record = self.direction.record
        renamed = {"held_out_auc": "auc", "held_out": "validation", "trained_on": "train"}
        return {
            "model": self.lm.name,
            **{name: record[before] for name, before in renamed.items()},
            **{name: record[name] for name in ("accuracy", "intercept", "C", "seed", "sklearn")},
            **{name: record[name] for name in ("texts", "max_tokens") if name in record},
        }

    def score(self, texts: Sequence[str]) -> Scores:
        """Probability of the concept per text, float64, shape (n,); exactly 0 for a blank text.

        Texts are cut where the probe's training texts were.
        """
        if acted_on(self.lm):
            raise DialdownError(
                f"The probe reads texts with {self.lm.name}, on which an intervention acts right "
                "now: score outside of `applied`."
            )
        return of_texts(texts, self._probabilities)

    def _probabilities(self, texts: Sequence[str]) -> Scores:
        record = self.direction.record
        longest = record.get("max_tokens", 128)
        features = probe_features(self.lm, texts, protocols=("strict",), max_tokens=longest)
        return np.asarray(expit(features["strict"] @ self.direction.vector + record["intercept"]))
