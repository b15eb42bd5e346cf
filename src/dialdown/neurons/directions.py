"""Concept directions: a token contrast, and a random one for controls (METHOD §2); `probe` has the
linear probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..cards import card
from ..data.corpora import normalise
from ..data.reading import whole_text
from ..errors import DialdownError
from ..files import read_arrays, write_arrays
from ..models.lm import LM
from ..models.protocol import Protocol, check_protocols
from ..models.tokens import refuse_one_text

DirectionSite = Literal["residual", "after_norm", "unembedding", "random"]

TOXIC_WORDS = ("fuck", "shit", "crap", "damn", "asshole")
NON_TOXIC_WORDS = ("hello", "thanks", "friend", "peace", "welcome")
"""Of the split under `paper`, whatever the study's seed."""


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction W in the residual stream; larger projections mean more of the concept.

    Attributes:
        name: `probe`, `contrast`, `difference` or `random`.
        vector: (d,) float64, not normalised.
        site: where it was read: the final-layer residual before or after the final norm, the
            unembedding, or nowhere.
        record: provenance: model, protocol, and for a probe its validation accuracy, AUC, sizes and
            seed.
    """

    name: str
    vector: NDArray[np.float64]
    site: DirectionSite
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> NDArray[np.float64]:
        """`W / |W|`, (d,) float64."""
        return np.asarray(self.vector / np.linalg.norm(self.vector))

    @property
    def accuracy(self) -> float | None:
        """Validation accuracy of a probe; None for other directions."""
        accuracy: float | None = self.record.get("accuracy")
        return accuracy

    def __repr__(self) -> str:
        accuracy = "" if self.accuracy is None else f", validation accuracy {self.accuracy:.3f}"
        where = "" if self.site == self.name else f" ({self.site})"
        return f"Direction({self.name}{where}, d {len(self.vector):,}{accuracy})"

    def _repr_html_(self) -> str:
        recorded = {name: fact for name, fact in self.record.items() if name != "class"}
        facts = {"site": self.site, "length": f"{np.linalg.norm(self.vector):.4g}", **recorded}
        return card(f"Direction {self.name}", facts)

    def save(self, path: str | Path) -> None:
        """Write the direction as one safetensors file."""
        record = {"name": self.name, "site": self.site, "record": self.record}
        write_arrays(Path(path), "direction", {"vector": self.vector}, record)

    @classmethod
    def load(cls, path: str | Path) -> Direction:
        """Read what `save` wrote.

        Raises:
            DialdownError: the file is missing, damaged or holds no direction.
        """
        arrays, record = read_arrays(Path(path), "direction")
        return cls(record["name"], arrays["vector"], record["site"], record["record"])


def token_contrast(
    lm: LM,
    positive: Sequence[str] = TOXIC_WORDS,
    negative: Sequence[str] = NON_TOXIC_WORDS,
    *,
    protocol: Protocol = "strict",
) -> Direction:
    """Mean unembedding of the positive words minus that of the negative words (METHOD §2, §5,
    probe-free).

    `strict` tokenizes each word as it stands inside a sentence (after a space), `paper` as it
    stands alone; its sub-tokens are averaged first, then words.

    Raises:
        DialdownError: a list is empty, a word is in both lists (whatever its case), or a word has
            no tokens.
    """
    check_protocols(protocol)
    refuse_one_text(positive)
    refuse_one_text(negative)
    if not positive or not negative:
        raise DialdownError(
            "A token contrast needs words on both sides: pass at least one positive and one "
            "negative word."
        )
    if both := {normalise(word) for word in positive} & {normalise(word) for word in negative}:
        raise DialdownError(
            f"The word {min(both)!r} is on both sides of the contrast, case and spaces aside, "
            "where it cancels: remove it from one."
        )
    vector = _mean_word(lm, positive, protocol) - _mean_word(lm, negative, protocol)
    record = {
        **lm.describe(),
        "protocol": protocol,
        "positive": list(positive),
        "negative": list(negative),
    }
    return Direction("contrast", vector, "unembedding", record)


def _mean_word(lm: LM, words: Sequence[str], protocol: Protocol) -> NDArray[np.float64]:
    rows = []
    space = "" if protocol == "paper" else " "
    for word in words:
        whole_text(word, "A word of the contrast")
        ids = lm.tokenizer(f"{space}{word.strip()}", add_special_tokens=False)["input_ids"]
        # SentencePiece tokenizers may write the space as a token of its own, which is not part of
        # the word; and the token for what is unknown says nothing of it.
        printed = [
            token for token in ids if lm.tokenizer.decode([token], skip_special_tokens=True).strip()
        ]
        if not printed:
            raise DialdownError(
                f"The word {word!r} has no tokens in the vocabulary of {lm.name}: pass another "
                "word."
            )
        rows.append(
            lm.view.unembedding.weight.detach()[ids if protocol == "paper" else printed]
            .double()
            .mean(0)
        )
    return np.asarray(torch.stack(rows).mean(0).cpu().numpy())


def random_direction(lm: LM, *, seed: int = 0) -> Direction:
    """A Gaussian direction, the control for "specific to the concept" (METHOD §5)."""
    vector = np.random.default_rng(seed).standard_normal(lm.view.d_model)
    return Direction("random", vector, "random", {**lm.describe(), "seed": seed})
