"""Prompts, labelled texts and reference text: embedded, from a file, or from the hub.

A source is a string everywhere: `embedded:<name>`, the path of a file, or the id of a data set on
the hub. Every choice among rows is a shuffle by seed, so the same call gives the same texts on
every machine.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import DialdownError
from . import corpora
from .assets import fetch
from .corpora import Part, normalise
from .reading import (
    ROW_TYPES,
    STRUCTURED,
    field_of,
    is_embedded,
    is_hub_id,
    is_wanted,
    label_of,
    read_file,
    read_rows,
    read_text,
    suffix_of,
)

T = TypeVar("T")
_TEXT_COLUMNS = ("text", "comment_text", "prompt")


@dataclass(frozen=True)
class LabelledTexts:
    """Texts, and int8 labels of shape (n,): 1 for the concept (as toxicity), 0 for its absence.

    Attributes:
        groups: (n,) numbers, the same for texts that were cut from one whole, as sentences from a
            review; None where each text is a whole.
        contradictory: how many texts of a file had both labels, and were left out.
    """

    texts: tuple[str, ...]
    labels: NDArray[np.int8]
    groups: NDArray[np.intp] | None = None
    contradictory: int = 0

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class PromptSplit:
    """Prompts for the evaluation and, disjoint from them, prompts to make training pairs with."""

    evaluation: tuple[str, ...]
    training: tuple[str, ...]


def load_prompts(
    source: str, n: int | None, *, seed: int, exclude: Collection[str] = ()
) -> list[str]:
    """`n` prompts (all of them for None) in an order set by `seed`, duplicates left out (METHOD
    §6).

    Sources: `embedded:challenge` (993 prompts of the RealToxicityPrompts challenge subset),
    `embedded:category` (623 by category), `embedded:rtp` (both), `embedded:wikitext2` (sentences of
    its training split, to make pairs with as the paper does), `embedded:imdb` (first halves of
    sentences of 57 film reviews, none of which `load_labelled` gives: 606 prompts), a .txt file
    with one prompt a line, a .jsonl or .csv file with `prompt` or `text`, a hub id
    (`allenai/real-toxicity-prompts` gives its challenge subset). A prompt that equals, starts with,
    or is the start of one in `exclude` is left out.

    Raises:
        DialdownError: the source is missing, unreadable or empty, a prompt is empty, or fewer than
            `n` are left.
    """
    seen: set[str] = set()
    prompts: list[str] = []
    excluded = _overlapping(exclude)
    for prompt in _read_prompts(source):
        key = normalise(prompt)
        if key not in seen and not excluded(key):
            prompts.append(prompt)
        seen.add(key)
    what = f"prompts in {source!r}" + (" beside the excluded ones" if exclude else "")
    return _pick(prompts, n, seed, what)


def split_prompts(
    source: str,
    *,
    evaluation: int,
    training: int | None,
    seed: int,
    training_source: str | None = None,
    read: Collection[str] = (),
) -> PromptSplit:
    """Two sets of prompts, of one source or two, neither holding a prompt, or the start of one, of
    the other (METHOD §8).

    None for `training` takes all that are left. `read` are sources that the evaluation takes other
    texts from: where `embedded:wiki` is among them, the training prompts of `embedded:wikitext2`,
    from whose training split most of its sentences are, are none of its sentences.

    Raises:
        DialdownError: as `load_prompts`.
    """
    judged = load_prompts(source, evaluation, seed=seed)
    training_source = training_source or source
    if not (training_source == "embedded:wikitext2" and "embedded:wiki" in read):
        trained = load_prompts(training_source, training, seed=seed, exclude=judged)
        return PromptSplit(tuple(judged), tuple(trained))
    known = {
        _letters(sentence)
        for for_pairs in (True, False)
        for sentence in corpora.wiki_sentences(for_pairs=for_pairs)
    }
    # Left out after the shuffle: the order of all others stays.
    trained = [
        prompt
        for prompt in load_prompts(training_source, None, seed=seed, exclude=judged)
        if _letters(prompt) not in known
    ]
    what = f"prompts in {training_source!r} that are no sentence of 'embedded:wiki'"
    return PromptSplit(tuple(judged), tuple(trained[: _at_most(len(trained), training, what)]))


def load_labelled(
    source: str, n: int | None, *, seed: int, part: Part | None = None, max_words: int | None = None
) -> LabelledTexts:
    """Labelled texts, half of each label where `n` is given, in an order set by `seed` (METHOD §2).

    Sources: `embedded:comments` (184,354 comments; 1 is toxic), `embedded:imdb` (1,723 sentences of
    143 film reviews; 1 is a negative review's), or a .csv, .tsv or .jsonl file with `text` and
    `label` (0 or 1). `part` keeps one of three disjoint parts (probe 20 %, judge 50 %, pair_scorer
    30 %); of the 200 film reviews the probe has half, the pair scorer and `load_prompts` a quarter
    each, and a review is never divided: its sentences are one of the result's `groups`. `max_words`
    keeps texts of at most so many words. Texts that differ only in case or white space count once;
    with both labels in a file they are left out, and counted in `contradictory` (of the embedded
    comments, where 19 have both, the first label stands).

    Raises:
        DialdownError: the source is missing or lacks a column, a label is not 0 or 1, only one
            label occurs, or there are too few texts for `n`; or the reviews' judge part is asked
            for.
    """
    share = None if part is None else corpora.share_of(source, part)
    texts, contradictory = _distinct(source, max_words)
    kept = [
        (text, label, whole)
        for text, label, whole in texts
        if share is None or corpora.falls_in(share, whole)
    ]
    by_label = {label: [row for row in kept if row[1] == label] for label in (0, 1)}
    if kept and not (by_label[0] and by_label[1]):
        only = int(bool(by_label[1]))
        raise DialdownError(
            f"All {len(kept)} texts of {source!r} have the label {only}, and a direction needs "
            "both: pass texts labelled 1 (they have the concept) and 0 (they have not)."
        )
    if n is not None:
        kept = [
            row
            for label, count in ((1, n // 2), (0, n - n // 2))
            for row in _pick(by_label[label], count, seed, f"texts labelled {label} in {source!r}")
        ]
    chosen = _pick(kept, None, seed, f"labelled texts in {source!r}")
    return LabelledTexts(
        tuple(text for text, _, _ in chosen),
        np.array([label for _, label, _ in chosen], dtype=np.int8),
        _groups(chosen),
        contradictory,
    )


def _distinct(source: str, max_words: int | None) -> tuple[list[tuple[str, int, str]], int]:
    """What `_read_labelled` gives, each text once, and how many had both labels."""
    texts: dict[str, tuple[str, int, str]] = {}
    contradictory: set[str] = set()
    for text, label, whole in _read_labelled(source):
        key = normalise(text)
        if key and (max_words is None or len(text.split()) <= max_words):
            _, first, _ = texts.setdefault(key, (text, label, whole))
            # Of the embedded ones the first counts: published numbers rest on it.
            if label != first and not is_embedded(source):
                contradictory.add(key)
    kept = [row for key, row in texts.items() if key not in contradictory]
    return kept, len(contradictory)


def _groups(rows: Sequence[tuple[str, int, str]]) -> NDArray[np.intp] | None:
    """The wholes of texts, numbered as they come; None where no text is a part of one."""
    if all(text == whole for text, _, whole in rows):
        return None
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(whole, len(numbers)) for _, _, whole in rows], np.intp)


def load_wiki_pairs(source: str, n: int | None, *, seed: int) -> list[tuple[str, str]]:
    """Pairs (prompt, true continuation) of encyclopedic text, for the F1 metric (METHOD §6).

    Sources: `embedded:wiki` (short sentences cut in half), `embedded:wikitext2` (validation split:
    a sentence and the one after it), or a .jsonl or .csv file with `prompt` and `gold`.

    Raises:
        DialdownError: the source is missing or empty, lacks a column, or holds fewer than `n`
            pairs.
    """
    if source == "embedded:wiki":
        pairs = [corpora.halves(sentence) for sentence in corpora.wiki_sentences(for_pairs=True)]
    elif source == "embedded:wikitext2":
        pairs = corpora.successive_sentences(corpora.wikitext2_rows("valid"))
    else:
        rows = read_rows(source, ("embedded:wiki", "embedded:wikitext2"))
        pairs = [
            (field_of(row, ("prompt",), place), field_of(row, ("gold",), place))
            for place, row in rows
        ]
    return _pick(pairs, n, seed, f"prompt and continuation pairs in {source!r}")


def load_reference_text(source: str) -> str:
    """One text for log-perplexity (METHOD §6).

    Sources: `embedded:wiki` (short WikiText sentences, those that `load_wiki_pairs` does not use, a
    blank line between them), `embedded:wikitext2` or a WikiText id on the hub (raw test split, rows
    joined by blank lines as published), another hub id with a `text` column (test split), a .jsonl,
    .csv or .tsv file with `text` (joined likewise), or another text file, taken as it is.

    Raises:
        DialdownError: the source is missing, unreadable or blank.
    """
    if source == "embedded:wiki":
        text = "\n\n".join(corpora.wiki_sentences(for_pairs=False))
    elif source == "embedded:wikitext2":
        text = "\n\n".join(corpora.wikitext2_rows("test"))
    elif is_embedded(source) or is_hub_id(source) or suffix_of(Path(source)) in ROW_TYPES:
        rows = read_rows(source, ("embedded:wiki", "embedded:wikitext2"), split="test")
        text = "\n\n".join(field_of(row, ("text",), place, blank=True) for place, row in rows)
    elif suffix_of(Path(source)) in STRUCTURED:
        raise DialdownError(
            f"{source} is no plain text, and its markup would be measured with it: pass a .txt, "
            ".jsonl, .csv or .tsv file, or an embedded source."
        )
    else:
        text = read_text(Path(source))
    if not text.strip():
        raise DialdownError(
            f"{source!r} holds no text: pass a file with at least a few hundred words."
        )
    return text


def _overlapping(texts: Iterable[str]) -> Callable[[str], bool]:
    """Whether a text, in normal form, equals, starts with, or is the start of one of the texts."""
    known = {normalise(text) for text in texts}
    in_order, lengths = sorted(known), sorted({len(text) for text in known})

    def overlaps(key: str) -> bool:
        following = bisect_left(in_order, key)
        if following < len(in_order) and in_order[following].startswith(key):
            return True
        return any(key[:length] in known for length in lengths if length <= len(key))

    return overlaps


def _letters(text: str) -> str:
    """The form in which sentences of WikiText, with spaces around every mark, and those of
    `embedded:wiki`, without most marks, are the same.
    """
    return "".join(filter(str.isalnum, text.casefold()))


def _pick(items: Sequence[T], n: int | None, seed: int, what: str) -> list[T]:
    """`n` of the items, or all, shuffled by `seed`; a larger `n` begins with the same ones."""
    if not items:
        raise DialdownError(f"There are no {what}: pass another source.")
    order = np.random.default_rng(seed).permutation(len(items))
    return [items[i] for i in order[: _at_most(len(items), n, what)]]


def _at_most(most: int, n: int | None, what: str) -> int:
    """`n`, where there are as many; all for None."""
    if n is not None and not 0 <= n <= most:
        raise DialdownError(
            f"{n} were asked for but there are {most} {what}: ask for at most {most}, or pass a "
            "source with more."
        )
    return most if n is None else n


def _read_prompts(source: str) -> Iterable[str]:
    readers = {
        "embedded:challenge": corpora.challenge_prompts,
        "embedded:category": corpora.category_prompts,
        "embedded:wikitext2": lambda: [
            first for first, _ in corpora.successive_sentences(corpora.wikitext2_rows("train"))
        ],
        "embedded:imdb": corpora.review_prompts,
    }
    if source == "embedded:rtp":
        return [*corpora.challenge_prompts(), *corpora.category_prompts()]
    if source in readers:
        return readers[source]()
    if suffix_of(Path(source)) == ".txt":
        return [line.strip() for line in read_text(Path(source)).split("\n") if line.strip()]
    rows = read_rows(source, (*readers, "embedded:rtp"))
    return [
        field_of(row, ("prompt", "text"), place)
        for place, row in rows
        if is_wanted(row, "challenging", place)
    ]


def _read_labelled(source: str) -> Iterator[tuple[str, int, str]]:
    """Texts, their labels, and the whole that each is a part of and that must not be divided."""
    if source == "embedded:imdb":
        for review, label in corpora.film_reviews():
            if not corpora.falls_in(corpora.REVIEW_PROMPTS, review):
                yield from (
                    (sentence, label, review) for sentence in corpora.review_sentences(review)
                )
        return
    if source == "embedded:comments":
        rows = read_file(fetch("comments") / "clean_data.csv")
    else:
        rows = read_rows(source, ("embedded:comments", "embedded:imdb"))
    for place, row in rows:
        text = field_of(row, _TEXT_COLUMNS, place, blank=True)
        yield text, label_of(row, place), text


def checked_scores(scores: Any, texts: Sequence[str], name: str) -> list[float]:
    """What a scorer gave, if it is one probability for each text (DialdownError)."""
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (len(texts),) or not ((values >= 0) & (values <= 1)).all():
        raise DialdownError(
            f"The scorer {name} gave values of shape {values.shape}, or outside 0 to 1, for "
            f"{len(texts)} texts: return one probability for each."
        )
    probabilities: list[float] = values.tolist()
    return probabilities
