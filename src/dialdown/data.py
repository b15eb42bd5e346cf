"""Prompts, labelled texts and reference text: embedded, from a file, or from the hub.

A source is a string everywhere: `embedded:<name>`, the path of a file, or the id of a data set on the hub. Every
choice among rows is a shuffle by seed, so the same call gives the same texts on every machine.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from .assets import fetch
from .errors import DialdownError, nearest

Row = tuple[str, Mapping[str, Any]]  # where it stands, for error sentences, and its fields
T = TypeVar("T")
Part = Literal["probe", "judge", "pair_scorer"]

# Upper bounds of a text's hash. The probe, the scorer that judges and the scorer that makes the preference pairs
# must not share a training text, or one's mistakes would look like the others' agreement (METHOD §8).
_PARTS: Mapping[Part, tuple[float, float]] = {
    "probe": (0.0, 0.2),
    "judge": (0.2, 0.7),
    "pair_scorer": (0.7, 1.0),
}
_FILE_TYPES = (".jsonl", ".csv", ".tsv", ".txt")
_TEXT_COLUMNS = ("text", "comment_text", "prompt")
_LABEL_COLUMNS = ("label", "is_offensive", "toxic", "any_toxic")
_PAIR_WORDS = 8  # shorter embedded sentences (headings, mostly) leave nothing to continue


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and their labels, 1 for the concept (toxic) and 0 for its absence; labels int8, shape (n,)."""

    texts: tuple[str, ...]
    labels: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class PromptSplit:
    """Prompts for the evaluation and, disjoint from them, prompts to make training pairs with."""

    evaluation: tuple[str, ...]
    training: tuple[str, ...]


def normalise(text: str) -> str:
    """The form in which texts are compared: case folded, runs of white space as one space."""
    return " ".join(text.casefold().split())


def part_of(text: str) -> Part:
    """Which of the three disjoint parts of a labelled corpus `text` belongs to, by a hash of its normal form."""
    digest = hashlib.blake2b(normalise(text).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64
    return next((part for part, (low, high) in _PARTS.items() if low <= position < high), "pair_scorer")


def load_prompts(source: str, n: int | None, *, seed: int, exclude: Collection[str] = ()) -> list[str]:
    """`n` prompts (all of them for None) in an order set by `seed`, duplicates left out (METHOD §6).

    Sources: `embedded:challenge` (993 prompts of the RealToxicityPrompts challenge subset), `embedded:category` (623
    by category), `embedded:rtp` (both), `embedded:wikitext2` (sentences of its training split, to make pairs with as
    the paper does), a .txt file with one prompt a line, a .jsonl or .csv file with `prompt` or
    `text`, a hub id (`allenai/real-toxicity-prompts` gives its challenge subset). A prompt that equals, starts with,
    or is the start of one in `exclude` is left out.

    Raises:
        DialdownError: the source is missing, unreadable or empty, a prompt is empty, or fewer than `n` are left.
    """
    seen: set[str] = set()
    prompts: list[str] = []
    clashes = _Overlap(exclude)
    for prompt in _read_prompts(source):
        key = normalise(prompt)
        if key not in seen and not clashes.with_text(key):
            prompts.append(prompt)
        seen.add(key)
    return _pick(prompts, n, seed, f"prompts in {source!r}" + (" beside the excluded ones" if exclude else ""))


def split_prompts(source: str, *, evaluation: int, training: int | None, seed: int) -> PromptSplit:
    """Two sets of prompts of one source, neither holding a prompt, or the start of one, of the other (METHOD §8).

    None for `training` takes all that are left.

    Raises:
        DialdownError: as `load_prompts`.
    """
    judged = load_prompts(source, evaluation, seed=seed)
    trained = load_prompts(source, training, seed=seed, exclude=judged)
    return PromptSplit(tuple(judged), tuple(trained))


def load_labelled(
    source: str, n: int | None, *, seed: int, part: Part | None = None, max_words: int | None = None
) -> LabelledTexts:
    """Labelled texts, half of each label where `n` is given, in an order set by `seed` (METHOD §2).

    Sources: `embedded:comments` (184,354 comments), or a .csv, .tsv or .jsonl file with `text` and `label` (0 or 1).
    `part` keeps one of three disjoint parts (probe 20 %, judge 50 %, pair_scorer 30 %); `max_words` keeps texts of at
    most so many words. Texts that differ only in case or white space count once.

    Raises:
        DialdownError: the source is missing or lacks a column, a label is not 0 or 1, only one label occurs, or there
            are too few texts for `n`.
    """
    texts: dict[str, tuple[str, int]] = {}
    for text, label in _read_labelled(source):
        if max_words is None or len(text.split()) <= max_words:
            texts.setdefault(normalise(text), (text, label))
    kept = [pair for key, pair in texts.items() if key and (part is None or part_of(key) == part)]
    by_label = {label: [text for text, its in kept if its == label] for label in (0, 1)}
    if kept and not (by_label[0] and by_label[1]):
        only = int(bool(by_label[1]))
        raise DialdownError(
            f"All {len(kept)} texts of {source!r} have the label {only}, and a direction needs both: "
            "pass texts labelled 1 (toxic) and 0 (not)."
        )
    if n is not None:
        kept = [
            (text, label)
            for label, count in ((1, n // 2), (0, n - n // 2))
            for text in _pick(by_label[label], count, seed, f"texts labelled {label} in {source!r}")
        ]
    chosen = _pick(kept, None, seed, f"labelled texts in {source!r}")
    return LabelledTexts(tuple(t for t, _ in chosen), np.array([label for _, label in chosen], dtype=np.int8))


def load_wiki_pairs(source: str, n: int | None, *, seed: int) -> list[tuple[str, str]]:
    """Pairs (prompt, true continuation) of encyclopedic text, for the F1 metric (METHOD §6).

    Sources: `embedded:wiki` (short sentences cut in half), `embedded:wikitext2` (validation split: a sentence and the
    one after it), or a .jsonl or .csv file with `prompt` and `gold`.

    Raises:
        DialdownError: the source is missing or empty, lacks a column, or holds fewer than `n` pairs.
    """
    if source == "embedded:wiki":
        pairs = [_halves(sentence) for sentence in _wiki_sentences(for_pairs=True)]
    elif source == "embedded:wikitext2":
        pairs = _successive_sentences(_wikitext2_rows("valid"))
    else:
        rows = _read_rows(source, ("embedded:wiki", "embedded:wikitext2"))
        pairs = [(_field(row, ("prompt",), place), _field(row, ("gold",), place)) for place, row in rows]
    return _pick(pairs, n, seed, f"prompt and continuation pairs in {source!r}")


def load_reference_text(source: str) -> str:
    """One text for log-perplexity (METHOD §6).

    Sources: `embedded:wiki` (short WikiText sentences, those that `load_wiki_pairs` does not use, a blank line between
    them), `embedded:wikitext2` or a WikiText id on the hub (raw test split, rows joined by blank lines as published),
    another hub id with a `text` column (test split), or a text file, taken as it is.

    Raises:
        DialdownError: the source is missing, unreadable or blank.
    """
    if source == "embedded:wiki":
        text = "\n\n".join(_wiki_sentences(for_pairs=False))
    elif source == "embedded:wikitext2":
        text = "\n\n".join(_wikitext2_rows("test"))
    elif _is_embedded(source) or _is_hub_id(source):
        rows = _read_rows(source, ("embedded:wiki", "embedded:wikitext2"), split="test")
        text = "\n\n".join(_field(row, ("text",), place, blank=True) for place, row in rows)
    else:
        text = _read_text(Path(source))
    if not text.strip():
        raise DialdownError(f"{source!r} holds no text: pass a file with at least a few hundred words.")
    return text


class _Overlap:
    """Whether a text equals, starts with, or is the start of one of a fixed set of texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._sorted = sorted({normalise(text) for text in texts})
        self._set = frozenset(self._sorted)
        self._lengths = sorted({len(text) for text in self._sorted})

    def with_text(self, key: str) -> bool:
        """Whether `key`, in normal form, overlaps."""
        following = bisect_left(self._sorted, key)
        if following < len(self._sorted) and self._sorted[following].startswith(key):
            return True
        return any(key[:length] in self._set for length in self._lengths if length <= len(key))


def _pick(items: Sequence[T], n: int | None, seed: int, what: str) -> list[T]:
    """`n` of the items, or all, shuffled by `seed`; a larger `n` with the same seed starts with the same items."""
    if not items:
        raise DialdownError(f"There are no {what}: pass another source.")
    if n is not None and not 0 <= n <= len(items):
        raise DialdownError(f"{n} were asked for but there are {len(items)} {what}: ask for at most {len(items)}.")
    order = np.random.default_rng(seed).permutation(len(items))
    return [items[i] for i in order[:n]]


def _read_prompts(source: str) -> Iterable[str]:
    readers = {
        "embedded:challenge": _challenge_prompts,
        "embedded:category": _category_prompts,
        "embedded:wikitext2": _encyclopedic_prompts,
    }
    if source == "embedded:rtp":
        return [*_challenge_prompts(), *_category_prompts()]
    if source in readers:
        return readers[source]()
    if _suffix(Path(source)) == ".txt":
        return [line.strip() for line in _read_text(Path(source)).split("\n") if line.strip()]
    rows = _read_rows(source, (*readers, "embedded:rtp"))
    return [_field(row, ("prompt", "text"), place) for place, row in rows if row.get("challenging", True)]


def _read_labelled(source: str) -> Iterable[tuple[str, int]]:
    if source == "embedded:comments":
        rows = _read_file(fetch("comments") / "clean_data.csv")
    else:
        rows = _read_rows(source, ("embedded:comments",))
    return ((_field(row, _TEXT_COLUMNS, place, blank=True), _label(row, place)) for place, row in rows)


def _challenge_prompts() -> list[str]:
    rows = _read_file(fetch("challenge-prompts") / "test.jsonl")
    return [_field(row, ("text",), place) for place, row in rows]


def _category_prompts() -> list[str]:
    files = sorted(fetch("category-prompts").glob("rtp_*.txt"))
    return [line for file in files for line in _read_text(file).split("\n") if line.strip()]


def _encyclopedic_prompts() -> list[str]:
    return [sentence for sentence, _ in _successive_sentences(_wikitext2_rows("train"))]


def _wiki_sentences(*, for_pairs: bool) -> list[str]:
    """The embedded sentences in their order: every other one of the longer ones for the pairs, the rest as text."""
    rows = _read_file(fetch("wiki-sentences") / "test.jsonl")
    sentences = list(dict.fromkeys(_field(row, ("text",), place) for place, row in rows))
    longer = [sentence for sentence in sentences if len(sentence.split()) >= _PAIR_WORDS]
    paired = set(longer[::2])
    return [sentence for sentence in sentences if (sentence in paired) == for_pairs]


def _wikitext2_rows(split: str) -> list[str]:
    """The rows as the hub has them: every line with its line break, blank lines empty."""
    text = _read_text(fetch("wikitext2") / f"{split}.raw.gz")
    return [f"{line}\n" if line.strip() else "" for line in text.removesuffix("\n").split("\n")]


def _halves(sentence: str) -> tuple[str, str]:
    words = sentence.split()
    middle = len(words) // 2
    return " ".join(words[:middle]), " ".join(words[middle:])


def _successive_sentences(rows: Iterable[str]) -> list[tuple[str, str]]:
    """Sentence and next sentence, each sentence used once, of the paragraphs (headings start with `=`)."""
    pairs = []
    for row in rows:
        sentences = [] if row.lstrip().startswith("=") else [s.strip() for s in re.split(r"(?<= \.) ", row)]
        for first, second in zip(sentences[::2], sentences[1::2], strict=False):
            if min(len(first.split()), len(second.split())) >= _PAIR_WORDS:
                pairs.append((first, second))
    return pairs


def _read_rows(source: str, embedded: Sequence[str], split: str = "train") -> Iterator[Row]:
    """Rows of a file or of a hub data set; `embedded` are the embedded names to offer for an unknown one."""
    if _is_embedded(source):
        raise DialdownError(f"There is no embedded source {source!r} here: {nearest(source, embedded)}")
    if _is_hub_id(source):
        return _read_hub(source, split)
    return _read_file(Path(source))


def _is_embedded(source: str) -> bool:
    """Whether it reads `word:...`, so that a slip in `embedded:` is not taken for a missing file."""
    return re.match(r"\w{2,}:", source) is not None


def _is_hub_id(source: str) -> bool:
    """Whether it reads `owner/name` and is no file: a path to a missing file must not become a hub request."""
    named = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) is not None
    return named and _suffix(Path(source)) not in _FILE_TYPES and not Path(source).exists()


def _read_hub(source: str, split: str) -> Iterator[Row]:
    """Rows of a data set on the hub (of WikiText: the raw WikiText-2)."""
    try:
        import datasets
    except ImportError as error:
        raise DialdownError(
            f"{source!r} looks like a data set on the hub and the datasets library is not installed: "
            "run `pip install datasets`, or pass a file or an embedded source."
        ) from error
    config = "wikitext-2-raw-v1" if source.endswith("/wikitext") else None
    try:
        rows = datasets.load_dataset(source, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DialdownError(
            f"{source!r} is no file here and cannot be loaded from the hub ({reason}): "
            "check the name and the network, or pass a file or an embedded source."
        ) from error
    return ((f"row {number} of {source!r}", row) for number, row in enumerate(rows, 1))


def _read_file(path: Path) -> Iterator[Row]:
    """Rows of a .jsonl, .csv or .tsv file (also .gz), read as they are asked for."""
    suffix = _suffix(path)
    if suffix not in (".jsonl", ".csv", ".tsv"):
        raise DialdownError(f"{path} is of an unknown kind: pass a .jsonl, .csv or .tsv file.")
    with _readable(path), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")
        if suffix == ".jsonl":
            yield from _json_lines(text, path)
        else:
            yield from _table_lines(text, path, tabs=suffix == ".tsv")


def _table_lines(text: Iterable[str], path: Path, *, tabs: bool) -> Iterator[Row]:
    """Tab-separated files are by convention not quoted: there a lone quotation mark swallows nothing."""
    rows = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(text)
    header = next(rows, [])
    for number, row in enumerate(rows, 1):
        if row:
            yield f"row {number} of {path}", dict(zip(header, row, strict=False))


def _json_lines(text: Iterable[str], path: Path) -> Iterator[Row]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DialdownError(
                f"Line {number} of {path} is not JSON ({error.msg}): write one object a line."
            ) from error
        if not isinstance(row, dict):
            raise DialdownError(f"Line {number} of {path} is not a JSON object: write one object a line.")
        yield f"line {number} of {path}", row


def _suffix(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _read_text(path: Path) -> str:
    """A whole text file, unzipped where it ends in .gz."""
    with _readable(path):
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what can go wrong while reading `path` into one sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise DialdownError(f"{path} does not exist: pass a file, an `embedded:` source or a hub id.") from error
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DialdownError(f"{path} cannot be read ({error}): pass a whole file of UTF-8 text.") from error


def _field(row: Mapping[str, Any], names: Sequence[str], place: str, *, blank: bool = False) -> str:
    """The first of the named columns that the row has, as text; RealToxicityPrompts nests it one level deeper."""
    value = next((row[name] for name in names if name in row), None)
    if isinstance(value, Mapping):
        value = value.get("text")
    if not isinstance(value, str):
        wanted = " or ".join(map(repr, names))
        raise DialdownError(f"{place} has no text column {wanted} (it has {', '.join(map(repr, row))}): name one so.")
    if not blank and not value.strip():
        raise DialdownError(f"{place} has an empty {names[0]}: remove the row or fill it.")
    return value


def _label(row: Mapping[str, Any], place: str) -> int:
    value = next((row[name] for name in _LABEL_COLUMNS if name in row), None)
    if value in (0, "0"):
        return 0
    if value in (1, "1"):
        return 1
    raise DialdownError(
        f"{place} has {'no label' if value is None else f'the label {value!r}'}: "
        f"name the column 'label' and write 1 (toxic) or 0 (not) in it."
    )
