"""The one place where a user's file becomes text: whole files, and rows with where they stand, or a
data set on the hub.

Nothing here knows what a row is for; whatever is wrong with one is a sentence that names its line.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from ..errors import DialdownError, nearest
from ..extras import asking_for
from .hub import ADVICE, OFFLINE, RECONNECT, reaching, refusal

Row = tuple[str, Mapping[str, Any]]  # where it stands, for error sentences, and its fields

ROW_TYPES = (".jsonl", ".csv", ".tsv")
STRUCTURED = (".json", ".ndjson", ".xml", ".html", ".yaml", ".yml", ".parquet", ".arrow")
_LABEL_COLUMNS = ("label", "is_offensive", "toxic", "any_toxic")
# The longer marks first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WRITTEN_OBJECT = re.compile(r"""\{['"]text['"]: """)
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def whole_text(value: object, place: str) -> str:
    """`value`, if a tokenizer can take it; every text that a user gives passes through here."""
    if not isinstance(value, str):
        raise DialdownError(f"{place} {_no_text(value)}.")
    if half := _HALF_CHARACTER.search(value):
        raise DialdownError(
            f"{place} holds half of a character ({ascii(half[0])[1:-1]}), as a text cut within an "
            "emoji does: remove it, or write the whole character."
        )
    return value


def _no_text(value: object) -> str:
    if value is None:
        return "is null, which is not text: fill it, or leave the row out"
    if isinstance(value, list | tuple):
        return (
            "is a list, and only plain text is read: of a conversation pass the text that its "
            "chat template makes"
        )
    if isinstance(value, Mapping):
        return "is an object without a 'text': write the text itself"
    return f"is {value!r}, which is not text: write it in quotes"


def read_rows(source: str, embedded: Sequence[str], split: str = "train") -> Iterator[Row]:
    """Rows of a file or hub data set; `embedded` are the names to offer for an unknown one."""
    if is_embedded(source):
        raise DialdownError(
            f"There is no embedded source {source!r} here: {nearest(source, embedded)}"
        )
    if is_hub_id(source):
        return _read_hub(source, split)
    return read_file(Path(source))


def is_embedded(source: str) -> bool:
    """Whether it reads `word:...`, so that a slip in `embedded:` is not a missing file."""
    return re.match(r"\w{2,}:", source) is not None


def is_hub_id(source: str) -> bool:
    """Whether it reads `owner/name` and is not a file: a missing file is not a hub request."""
    named = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) is not None
    return (
        named and suffix_of(Path(source)) not in (*ROW_TYPES, ".txt") and not os.path.exists(source)
    )


def _read_hub(source: str, split: str) -> Iterator[Row]:
    """Rows of a data set on the hub (of WikiText: the raw WikiText-2)."""
    with asking_for(
        f"{source!r}, which looks like a data set on the hub,",
        instead="pass a file or an embedded source",
    ):
        import datasets
    config = "wikitext-2-raw-v1" if source.endswith("/wikitext") else None
    try:
        with reaching(source):
            rows = datasets.load_dataset(source, config, split=split)
    except datasets.exceptions.DatasetNotFoundError as error:
        # The hub's own answer is lost on the way to it.
        kind = GatedRepoError if "gated" in str(error) else RepositoryNotFoundError
        raise refusal(source, ADVICE[kind]) from error
    except ConnectionError as error:
        raise refusal(
            source,
            OFFLINE if constants.is_offline_mode() else f"the connection failed: {RECONNECT}",
        ) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DialdownError(
            f"{source!r} is not a file here, and what the hub has under that name cannot be read "
            f"({reason}): pass a data set with a table of texts, a file or an embedded source."
        ) from error
    return ((f"row {number} of {source!r}", row) for number, row in enumerate(rows, 1))


def read_file(path: Path) -> Iterator[Row]:
    """Rows of a .jsonl, .csv or .tsv file (also .gz), read as they are asked for."""
    suffix = suffix_of(path)
    if suffix == ".jsonl":
        yield from read_objects(path)
        return
    if suffix not in ROW_TYPES:
        kind = "a folder" if path.is_dir() else "of an unknown kind"
        raise DialdownError(
            f"{path} is {kind}: pass a .jsonl, .csv or .tsv file, or an embedded source."
        )
    with open_text(path) as text:
        yield from _table_lines(_text_lines(text, path), path, tabs=suffix == ".tsv")


def read_objects(path: Path) -> Iterator[Row]:
    """The JSON objects of a file, one a line, whatever its name ends in."""
    with open_text(path) as text:
        for number, line in enumerate(_text_lines(text, path), 1):
            if line.strip():
                yield f"line {number} of {path}", _object(line, number, path)


def _object(line: str, number: int, path: Path) -> Mapping[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=partial(_fields, f"Line {number} of {path}"))
    except RecursionError as error:
        raise DialdownError(
            f"Line {number} of {path} is nested too deeply to be read: write a flat object."
        ) from error
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DialdownError(
            f"Line {number} of {path} is not JSON ({reason}): write one object a line."
        ) from error
    if not isinstance(row, dict):
        raise DialdownError(
            f"Line {number} of {path} is not a JSON object: write one object a line."
        )
    return row


def _fields(place: str, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    _refuse_repeated(names, place)
    return dict(pairs)


def _refuse_repeated(names: Sequence[str], place: str) -> None:
    """Only the last column of a name would be read."""
    if len({*names}) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise DialdownError(
            f"{place} has {name!r} more than once, so it cannot be told which is meant: rename or "
            "remove all but one."
        )


def _table_lines(text: Iterable[str], path: Path, *, tabs: bool) -> Iterator[Row]:
    """By convention tab-separated files have no quotes: a lone quotation mark swallows nothing."""
    # Not strict, a quotation mark that is never closed would make the rest of the file one cell.
    rows = (
        csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
        if tabs
        else csv.reader(text, strict=True)
    )
    header = [name.strip() for name in next(rows, [])]
    _refuse_repeated([name for name in header if name], f"The header of {path}")
    for number, row in enumerate(rows, 1):
        if any(cell.strip() for cell in row[len(header) :]):
            raise DialdownError(
                f"Row {number} of {path} has {len(row)} cells where the header has {len(header)}: "
                f"put a text with a {'tab' if tabs else 'comma'} in "
                f"quotes{', in a .csv file' if tabs else ''}."
            )
        if row:
            yield f"row {number} of {path}", dict(zip(header, row, strict=False))


def suffix_of(path: Path) -> str:
    """What kind of file its name says, in lower case; of a packed file, what is in it."""
    suffix = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if suffix == ".gz" else suffix


def read_text(path: Path) -> str:
    """A whole text file, unzipped where it ends in .gz."""
    with open_text(path) as text:
        return "".join(_text_lines(text, path))


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """A text file, unzipped where it ends in .gz: UTF-8, or UTF-16 or UTF-32 with a mark."""
    try:
        with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as binary:
            start = binary.peek(4)
            encoding = next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8-sig")
            yield io.TextIOWrapper(binary, encoding=encoding, newline="")
    except FileNotFoundError as error:
        raise DialdownError(
            f"{path} does not exist: pass a file, an `embedded:` source or a hub id."
        ) from error
    except (OSError, EOFError, UnicodeError, csv.Error, zlib.error, ValueError) as error:
        raise DialdownError(
            f"{path} cannot be read ({error}): pass a whole file of UTF-8 text."
        ) from error


def _text_lines(text: Iterable[str], path: Path) -> Iterator[str]:
    for line in text:
        if "\0" in line:
            raise DialdownError(
                f"{path} holds zero bytes, so it is not text, or UTF-16 without its mark: save it "
                "as UTF-8."
            )
        yield line


def field_of(
    row: Mapping[str, Any], names: Sequence[str], place: str, *, blank: bool = False
) -> str:
    """The first of the named columns that the row has; RealToxicityPrompts nests its text."""
    name = next((name for name in names if name in row), None)
    if name is None:
        expected = " or ".join(map(repr, names))
        raise DialdownError(
            f"{place} has no text column {expected} (it has {', '.join(map(repr, row))}): name one "
            "so."
        )
    value = row[name]
    if isinstance(value, Mapping) and "text" in value:
        value = value["text"]
    text = whole_text(value, f"The {name} in {place}")
    if _WRITTEN_OBJECT.match(text):
        raise DialdownError(
            f"The {name} in {place} is an object written out ({text[:12]}...), as pandas saves a "
            "nested column to .csv: save the data as .jsonl "
            "(to_json(path, orient='records', lines=True))."
        )
    if not blank and not text.strip():
        raise DialdownError(f"{place} has an empty {name}: remove the row or fill it.")
    return text


def label_of(row: Mapping[str, Any], place: str) -> int:
    """The label of a row, 0 or 1."""
    value = next((row[name] for name in _LABEL_COLUMNS if name in row), None)
    label = truth_of(value)
    if label is None:
        raise DialdownError(
            f"{place} has {'no label' if value is None else f'the label {value!r}'}: name the "
            "column 'label' and write 1 (the text has the concept) or 0 (it has not) in it."
        )
    return int(label)


def truth_of(value: object) -> bool | None:
    """Yes for 1, 1.0, true or yes; no for 0, 0.0, false or no; else None."""
    if isinstance(value, str):
        return {"1": True, "1.0": True, "true": True, "yes": True, "0": False, "0.0": False,
            "false": False, "no": False}.get(value.strip().lower())  # fmt: skip
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def is_wanted(row: Mapping[str, Any], name: str, place: str) -> bool:
    """Whether a row is wanted by its column of yes and no, where it has one."""
    wanted = truth_of(row.get(name, True))
    if wanted is None:
        raise DialdownError(
            f"{place} has {row[name]!r} as {name!r}: write true or false, or leave the column out."
        )
    return wanted
