"""Rows of text with where they stand: from a file (.jsonl, .csv, .tsv, also .gz) or a data set on the hub.

Nothing here knows what a row is for; whatever is wrong with one is a sentence that names its line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import DialdownError, nearest

Row = tuple[str, Mapping[str, Any]]  # where it stands, for error sentences, and its fields

_FILE_TYPES = (".jsonl", ".csv", ".tsv", ".txt")
_LABEL_COLUMNS = ("label", "is_offensive", "toxic", "any_toxic")


def read_rows(source: str, embedded: Sequence[str], split: str = "train") -> Iterator[Row]:
    """Rows of a file or of a hub data set; `embedded` are the embedded names to offer for an unknown one."""
    if is_embedded(source):
        raise DialdownError(f"There is no embedded source {source!r} here: {nearest(source, embedded)}")
    if is_hub_id(source):
        return _read_hub(source, split)
    return read_file(Path(source))


def is_embedded(source: str) -> bool:
    """Whether it reads `word:...`, so that a slip in `embedded:` is not taken for a missing file."""
    return re.match(r"\w{2,}:", source) is not None


def is_hub_id(source: str) -> bool:
    """Whether it reads `owner/name` and is no file: a path to a missing file must not become a hub request."""
    named = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) is not None
    return named and suffix_of(Path(source)) not in _FILE_TYPES and not Path(source).exists()


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


def read_file(path: Path) -> Iterator[Row]:
    """Rows of a .jsonl, .csv or .tsv file (also .gz), read as they are asked for."""
    suffix = suffix_of(path)
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


def suffix_of(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def read_text(path: Path) -> str:
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


def field_of(row: Mapping[str, Any], names: Sequence[str], place: str, *, blank: bool = False) -> str:
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


def label_of(row: Mapping[str, Any], place: str) -> int:
    value = next((row[name] for name in _LABEL_COLUMNS if name in row), None)
    if value in (0, "0"):
        return 0
    if value in (1, "1"):
        return 1
    raise DialdownError(
        f"{place} has {'no label' if value is None else f'the label {value!r}'}: "
        f"name the column 'label' and write 1 (the text has the concept) or 0 (it has not) in it."
    )
