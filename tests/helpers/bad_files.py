"""Files of texts, prompts, pairs, labels and words that cannot be read: see `bad_inputs`."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator

from helpers.bad_inputs import DEEP, Arguments, Case, Inputs


def file_setting(
    setting: str, name: str, content: bytes, *more: str
) -> Callable[[Inputs], Arguments]:
    """A file of this content, named by a setting."""

    def build(inputs: Inputs) -> Arguments:
        (inputs.root / name).write_bytes(content)
        return inputs.command(f"{setting}={inputs.root / name}", *more)

    return build


HALF = r"\ud83d"


ROW = b'{"prompt": "a", "gold": "b", "text": "c", "label": 1}\n'
# Where a text stands in a row -> what it may not be.
NO_TEXTS: dict[str, tuple[str, str]] = {
    "null": ("null", "is null, which is not text"),
    "a number": ("3", "is 3, which is not text"),
    "true": ("true", "is True, which is not text"),
    "a list": ('["a"]', "is a list, and only plain text is read"),
    "a conversation": ('[{"role": "user", "content": "a"}]', "text that its chat template makes"),
    "an object": ('{"words": "a"}', "is an object without a 'text'"),
    "an object of null": ('{"text": null}', "is null"),
    "half a character": (f'"a {HALF}"', r"half of a character \(\\ud83d\)"),
    "the other half": (r'"\ude00 a"', "half of a character"),
}
# Whatever the file is for: name of the file, content, what the sentence says.
NO_FILES: dict[str, tuple[str, bytes, str]] = {
    "cut gzip": ("f.jsonl.gz", gzip.compress(ROW * 99)[:-9], "cannot be read"),
    "no gzip": ("f.jsonl.gz", b'{"prompt": "a"}\n', "cannot be read"),
    "damaged gzip": ("f.csv.gz", gzip.compress(b"prompt\na\n")[:12] + bytes(9), "cannot be read"),
    "Latin-1": (
        "f.csv",
        "prompt,gold,text,label\né,a,b,1\n".encode("latin-1"),
        "cannot be read .*UTF-8",
    ),
    "UTF-16 without its mark": ("f.jsonl", '{"prompt": "a"}\n'.encode("utf-16-le"), "zero bytes"),
    "half of UTF-16": ("f.jsonl", '{"prompt": "a"}\n'.encode("utf-16")[:-1], "cannot be read"),
    "zero bytes": ("f.csv", b"prompt,gold,text,label\na\0,b,c,1\n", "zero bytes"),
    "no JSON": ("f.jsonl", b"{oops\n", "Line 1 of .* is not JSON"),
    "cut JSON": ("f.jsonl", b'{"prompt": "a\n', "Line 1 of .* is not JSON"),
    "deep JSON": ("f.jsonl", DEEP, "Line 1 of .* nested too deeply"),
    "deep objects": ("f.jsonl", b'{"a":' * 100_000, "Line 1 of .* nested too deeply"),
    "a number of 5000 digits": (
        "f.jsonl",
        b'{"label": ' + b"9" * 5000 + b"}\n",
        "Line 1 of .* is not JSON",
    ),
    "a list": ("f.jsonl", b'["a"]\n', "is not a JSON object"),
    "a JSON null": ("f.jsonl", b"null\n", "is not a JSON object"),
    "a whole JSON array": ("f.jsonl", b"[\n{}\n]\n", "Line 1 of .* is not JSON"),
    "an open quote": ("f.csv", b'prompt,gold,text,label\n"a,b,c,1\n', "cannot be read"),
    "a cell too many": (
        "f.csv",
        b"prompt,gold,text,label\na, b,c,d,1\n",
        "Row 1 of .* has 5 cells .* header has 4",
    ),
    "other columns": ("f.csv", b"words\na\n", "no text column"),
    "semicolons": ("f.csv", b"prompt;gold;text;label\na;b;c;1\n", "no text column"),
    "an unknown kind": ("f.docx", b"a", "of an unknown kind"),
    "a spreadsheet": ("f.xlsx", b"PK\x03\x04", "of an unknown kind"),
    "a Parquet file": ("f.parquet", b"PAR1", "of an unknown kind"),
}
# Setting of a file of rows -> a row that works, and its columns of text.
OF_ROWS = {
    "evaluation.prompts": ({"prompt": "a b"}, ("prompt",)),
    "training_prompts": ({"prompt": "a b"}, ("prompt",)),
    "probe.texts": ({"text": "a b", "label": 1}, ("text",)),
    "evaluation.pairs": ({"prompt": "a b", "gold": "c d"}, ("prompt", "gold")),
}


def file_cases() -> Iterator[Case]:
    """Files of rows, text and words."""
    for setting, (row, columns) in OF_ROWS.items():
        for name, (file, content, words) in NO_FILES.items():
            yield Case(f"{setting}, {name}", file_setting(setting, file, content), words)
        for column in columns:
            for name, (value, words) in NO_TEXTS.items():
                line = json.dumps({**row, column: "HERE"}).replace('"HERE"', value)
                yield Case(
                    f"{setting}, {column} that is {name}",
                    file_setting(setting, "f.jsonl", line.encode()),
                    words,
                )


def source_cases() -> Iterator[Case]:
    """Names that lead nowhere, and files with nothing in them."""
    for setting in (*OF_ROWS, "evaluation.text"):
        yield Case(
            f"{setting}, missing",
            lambda i, s=setting: i.command(f"{s}=none.jsonl"),
            "none.jsonl does not exist",
        )
        yield Case(
            f"{setting}, a folder",
            lambda i, s=setting: i.command(f"{s}={i.model}"),
            "is a folder|cannot be read",
        )
        yield Case(
            f"{setting}, a long name",
            lambda i, s=setting: i.command(f"{s}={'a' * 3000}.jsonl"),
            "cannot be read",
        )
        yield Case(
            f"{setting}, no such name",
            lambda i, s=setting: i.command(f"{s}=embedded:zzz"),
            "There is no embedded source",
        )
        yield Case(
            f"{setting}, empty", file_setting(setting, "f.jsonl", b""), "There are no|holds no text"
        )
        yield Case(
            f"{setting}, blank lines",
            file_setting(setting, "f.jsonl", b"\n \n"),
            "There are no|holds no text",
        )


def label_cases() -> Iterator[Case]:
    """Labels that are none, and prompts."""
    labels = {
        "2": "label '2'",
        "": "label ''",
        "toxic": "label 'toxic'",
        "0.83": "label '0.83'",
        "-1": "label '-1'",
    }
    for label, words in labels.items():
        table = f"text,label\na b,{label}\n".encode()
        yield Case(
            f"probe.texts, label {label!r}", file_setting("probe.texts", "f.csv", table), words
        )
    for label in ("null", "2", "0.83", '"maybe"', "[1]", "NaN", "{}"):
        line = f'{{"text": "a b", "label": {label}}}'.encode()
        yield Case(
            f"probe.texts, JSON label {label}",
            file_setting("probe.texts", "f.jsonl", line),
            "label",
        )
    for name, table, words in (
        (
            "one label",
            b"text,label\n" + b"".join(b"t%d,1\n" % n for n in range(60)),
            "have the label 1",
        ),
        ("too few", b"text,label\na,1\nb,0\n", "probe.count"),
        ("no label column", b"text,mark\na,1\n", "has no label"),
    ):
        yield Case(f"probe.texts, {name}", file_setting("probe.texts", "f.csv", table), words)
    yield Case(
        "prompts, challenging perhaps",
        file_setting("evaluation.prompts", "f.csv", b"prompt,challenging\na,perhaps\n"),
        "'perhaps' as 'challenging'",
    )
    yield Case(
        "prompts, an empty one",
        file_setting("evaluation.prompts", "f.csv", b'prompt,a\n" ",1\n'),
        "empty prompt",
    )
    yield Case(
        "prompts, too few",
        file_setting("evaluation.prompts", "f.txt", b"a\nb\n"),
        "evaluation.prompts and evaluation.count: ",
    )


def text_cases() -> Iterator[Case]:
    """Reference text and lists of words."""
    for name, file, content, words in (
        ("Latin-1", "t.txt", b"\xe9t\xe9 " * 99, "cannot be read"),
        ("zero bytes", "t.txt", "a b ".encode("utf-16-le") * 99, "zero bytes"),
        ("blank", "t.txt", b" \n", "holds no text"),
        ("short", "t.txt", b"a b", "evaluation.text|evaluation.window"),
        ("a number", "t.jsonl", b'{"text": 3}', "is 3, which is not text"),
        ("no text column", "t.csv", b"words\na\n", "no text column"),
        ("cut gzip", "t.txt.gz", gzip.compress(b"a b " * 99)[:-9], "cannot be read"),
    ):
        yield Case(
            f"evaluation.text, {name}", file_setting("evaluation.text", file, content), words
        )
    for name, content, words in (
        ("no word", b"# none\n\n", "has no words"),
        ("Latin-1", b"\xe9t\xe9\n", "cannot be read"),
        ("zero bytes", "word\n".encode("utf-16-le"), "zero bytes"),
    ):
        yield Case(f"token judge, {name}", file_setting("token_judge", "w.txt", content), words)


CASES: tuple[Case, ...] = (*file_cases(), *source_cases(), *label_cases(), *text_cases())
