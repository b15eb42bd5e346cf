"""Which tokens of a logit lens speak of a concept, as said by a judge (METHOD §3; the paper asked
GPT-4o).

Three judges: a text scorer with a threshold, a list of words, and a chat model (`chat_judge`),
which alone may give no answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ..data.reading import read_text, suffix_of
from ..errors import DialdownError
from ..files import fingerprint
from .chat_judge import load_chat_judge
from .scorers import Scorer, load_scorer

THRESHOLD = 0.5  # the score of a scorer above which a token is of the concept


class TokenJudge(Protocol):
    """What says whether a token is of the concept; white space never matters, blank never is."""

    @property
    def name(self) -> str:
        """The source `load_token_judge` takes; of a chat model, without the endpoint."""

    @property
    def record(self) -> Mapping[str, Any]:
        """Kind, concept, and what decides the answers; of a chat model also which are missing."""

    @property
    def caveat(self) -> str:
        """What it gets wrong or could not say, to show beside its numbers; may be empty."""

    @property
    def missing(self) -> int:
        """How many different tokens it was given, over all calls, that have no answer."""

    def judge(self, tokens: Sequence[str]) -> list[bool | None]:
        """Whether each token is of the concept, in order; None where there is no answer."""


def load_token_judge(source: str = "embedded:ngram", *, concept: str = "toxic") -> TokenJudge:
    """The token judge `source` names (METHOD §3).

    Args:
        source: a scorer that `load_scorer` takes; the path of a word list ending in `.txt` (one
            word a line, `#` starts a comment); `openai:MODEL`, with the endpoint of OPENAI_BASE_URL
            or OpenAI's own; or `openai:MODEL@http://host:port/v1`. The key is read from
            OPENAI_API_KEY and written nowhere.
        concept: what completes "this token is ..."; only a chat model is guided by it.

    Raises:
        DialdownError: the scorer or word list cannot be had, or the scorer cannot judge this
            concept; or the chat model lacks a name, a key, a plain address of its
            endpoint, or the `openai` package.
    """
    if not concept.strip():
        raise DialdownError(
            "The concept is blank, so no token can be of it: pass what completes 'this token is "
            "...'."
        )
    if source == "openai" or source.startswith("openai:"):
        return load_chat_judge(source, concept)
    if suffix_of(Path(source)) == ".txt":
        return WordListJudge.load(Path(source), concept)
    if source.startswith("embedded:") and concept not in ("toxic", "toxicity"):
        raise DialdownError(
            f"{source!r} scores toxicity and cannot tell which tokens are {concept!r}: pass a word "
            "list (.txt), a classifier with such a label after '#', or openai:MODEL."
        )
    return ScorerJudge(load_scorer(source), concept)


@dataclass(frozen=True, eq=False)
class ScorerJudge:
    """A text scorer that reads each token as a text; a token without a letter never counts."""

    scorer: Scorer
    concept: str
    missing: ClassVar[int] = 0

    @property
    def name(self) -> str:
        """The scorer's source."""
        return self.scorer.name

    @property
    def record(self) -> Mapping[str, Any]:
        """The threshold, and the scorer's own record."""
        of_scorer = {
            "source": self.name,
            "threshold": THRESHOLD,
            "scorer": dict(self.scorer.record),
        }
        return {"kind": "scorer", "concept": self.concept, **of_scorer}

    @property
    def caveat(self) -> str:
        """What the scorer is known to get wrong, and what a bare token adds to that."""
        bare = (
            "It was made for texts; on bare tokens it may also fire on words for groups of "
            "people and on word pieces."
        )
        return f"{self.scorer.caveat} {bare}".lstrip()

    def judge(self, tokens: Sequence[str]) -> list[bool | None]:
        """Whether each token scores above the threshold and has a letter."""
        scores = self.scorer.score([token.strip() for token in tokens])
        return [
            bool(score > THRESHOLD) and any(character.isalpha() for character in token)
            for token, score in zip(tokens, scores, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class WordListJudge:
    """A list of words in any case: a token counts if it is one or clearly starts one.

    A start has at least four characters and more than half of the word: `assh` starts `asshole`,
    while `mother` does not count for `motherfucker`. Nor does a token that goes beyond a word: a
    list names all the forms it means.
    """

    name: str  # the path it was read from
    concept: str
    words: frozenset[str]
    missing: ClassVar[int] = 0
    caveat: ClassVar[str] = ""

    @classmethod
    def load(cls, path: Path, concept: str) -> WordListJudge:
        """Read one word a line; `#` at the start of a line or after a space starts a comment."""
        lines = read_text(path).splitlines()
        words = frozenset(re.sub(r"(^|\s)#.*", "", line).strip().casefold() for line in lines) - {
            ""
        }
        if not words:
            raise DialdownError(
                f"The word list {path} has no words: write one word a line that is not a '#' "
                "comment."
            )
        return cls(str(path), concept, words)

    @property
    def record(self) -> Mapping[str, Any]:
        """How many words the list has, and their fingerprint."""
        words = sorted(self.words)
        return {
            "kind": "words",
            "concept": self.concept,
            "words": len(words),
            "fingerprint": fingerprint(words),
        }

    def judge(self, tokens: Sequence[str]) -> list[bool | None]:
        """Whether each token is in the list or clearly starts a word of it."""
        return [self._lists(token.strip().casefold()) for token in tokens]

    def _lists(self, token: str) -> bool:
        starts = len(token) >= 4 and any(
            word.startswith(token) and 2 * len(token) > len(word) for word in self.words
        )
        return starts or token in self.words
