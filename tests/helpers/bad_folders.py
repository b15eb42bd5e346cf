"""Folders of studies, edits, runs and models that are not what they should be: see `bad_inputs`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from helpers.bad_inputs import DEEP, Arguments, Case, Inputs
from helpers.broken_models import ADAPTERS, APART, CHAT_TEMPLATES, MODELS, TOKENIZERS
from helpers.model_folders import POINTER, Build, adapter, cut, whole, without, written


def folders() -> Iterator[Case]:
    """Folders that hold no study, or another."""

    def foreign(inputs: Inputs, **files: str) -> Arguments:
        (inputs.root / "out").mkdir()
        for name, content in files.items():
            (inputs.root / "out" / name.replace("_", ".")).write_text(content)
        return inputs.command()

    def a_file(inputs: Inputs) -> Arguments:
        (inputs.root / "out").write_text("mine")
        return inputs.command()

    yield Case("--out, a file", a_file, "out")
    yield Case(
        "--out, below a file",
        lambda i: [*i.command()[:3], str(i.study / "out")],
        "cannot be written|study.toml",
    )
    yield Case("--out, other files", lambda i: foreign(i, notes_txt="mine"), "holds no study")
    yield Case(
        "--out, a long name", lambda i: [*i.command()[:3], "a" * 300], "cannot be written|too long"
    )
    for name in ("front", "pairs"):
        yield Case(
            f"until {name}, other settings",
            lambda i, name=name: [
                *f"run --until {name} --seed 3 --out".split(),
                str(i.run),
                str(i.study),
            ],
            "other settings|holds no study|needs|holds",
        )
    yield Case("report, nothing", lambda i: ["report", "none"], "none is not there")
    yield Case(
        "app, nothing", lambda i: ["app", "runs/demo"], "runs/demo is not there: .*dialdown run"
    )
    yield Case(
        "chat, nothing", lambda i: ["chat", "calm"], "calm is not there: .*detox MODEL --out calm"
    )
    for given, meant in (
        ("smollm2-135m", "embedded:smollm2-135m"),
        ("embeded:gemma-3-270m", "embedded:gemma-3-270m"),
    ):
        yield Case(
            f"detox, {given}",
            lambda i, given=given: ["detox", given, "--out", str(i.root / "out")],
            f"no model '{given}': did you mean '{meant}'",
        )
    yield Case(
        "detox, a run that is not there",
        lambda i: ["detox", "runs/demo", "--out", str(i.root / "out")],
        "runs/demo is not there",
    )
    yield Case("report, a file", lambda i: ["report", str(i.study)], "study.toml")
    yield Case("report, a model", lambda i: ["report", str(i.model)], "run.json|no study")


def field(*keys: str, value: object) -> Build:
    """Set one field of edit.json."""

    def tamper(folder: Path) -> None:
        record = json.loads((folder / "edit.json").read_text(encoding="utf-8"))
        place = record
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (folder / "edit.json").write_text(json.dumps(record), encoding="utf-8")

    return tamper


# What is done to the two files of an edit -> words.
DELTAS: tuple[tuple[str, Build, str], ...] = (
    ("no record", without("edit.json"), "holds no delta"),
    ("no tensors", without("edit.safetensors"), "edit.safetensors"),
    ("an empty record", written("edit.json", b""), "edit.json"),
    ("a null record", written("edit.json", b"null"), "edit.json"),
    ("a list as record", written("edit.json", b"[]"), "edit.json"),
    ("a number as record", written("edit.json", b"3"), "edit.json"),
    ("a cut record", cut("edit.json", 50), "edit.json"),
    ("a record in Latin-1", written("edit.json", b'{"kind": "\xe9"}'), "edit.json"),
    ("a deep record", written("edit.json", DEEP), "edit.json"),
    ("empty tensors", written("edit.safetensors", b""), "edit.safetensors"),
    ("cut tensors", cut("edit.safetensors", 100), "edit.safetensors"),
    ("tensors that are text", written("edit.safetensors", b"hello " * 99), "edit.safetensors"),
    ("a git-lfs pointer", written("edit.safetensors", POINTER), "edit.safetensors"),
    ("another schema", field("schema", value=99), "schema"),
    ("no schema", field("schema", value=None), "schema"),
    ("another kind", field("kind", value="pairs"), "delta"),
    ("a base of text", field("base", value="gpt2"), "edit.json"),
    ("a base without a name", field("base", value={}), "edit.json"),
    ("another sha256", field("edit", "sha256", value="0" * 64), "sha256"),
    ("a sha256 of null", field("edit", "sha256", value=None), "sha256|edit.json"),
    ("another base", field("base", "sha256", value="0" * 64), "not the base"),
    ("a base of null", field("base", value=None), "edit.json"),
    ("a base of a list", field("base", value=["name", "revision", "sha256"]), "edit.json"),
    ("an edit of null", field("edit", value=None), "edit.json"),
    ("an edit of text", field("edit", value="sha256"), "edit.json|sha256"),
    ("a base sha256 of a number", field("base", "sha256", value=3), "base|edit.json"),
    ("a strength in words", field("strength", value="much"), "strength|edit.json"),
    ("a strength of null", field("strength", value=None), "strength|edit.json"),
    ("notes of text", field("notes", value="none"), "notes|edit.json"),
    ("rows of numbers", field("notes", value={"rows": [3]}), "notes|edit.json|rows"),
    ("an unknown note", field("notes", value={"whi": "x"}), "notes.whi"),
)


def deltas() -> Iterator[Case]:
    """Edits that were tampered with, or are used for what they are not."""
    for name, tamper, words in DELTAS:

        def build(inputs: Inputs, tamper: Build = tamper) -> Arguments:
            tamper(shutil.copytree(inputs.edit, inputs.root / "edit"))
            return ["apply", "edit", "--out", "made", "--base", str(inputs.model), "--no-verify"]

        yield Case(f"apply, {name}", build, words)
    for name, arguments, words in (
        ("apply, no edit", ["apply", "none", "--out", "made"], "none"),
        ("apply, a model", ["apply", "MODEL", "--out", "made"], "holds no delta"),
        (
            "apply, a local base that is not named",
            ["apply", "EDIT", "--out", "made"],
            "pass the folder as base",
        ),
        (
            "apply, no such base",
            ["apply", "EDIT", "--out", "made", "--base", "/none/here"],
            "/none/here",
        ),
        (
            "apply, a file as base",
            ["apply", "EDIT", "--out", "made", "--base", "STUDY"],
            "study.toml",
        ),
        (
            "apply, an infinite strength",
            ["apply", "EDIT", "--out", "made", "--base", "MODEL", "--strength", "inf"],
            "strength|finite",
        ),
        (
            "apply, a strength that is none",
            ["apply", "EDIT", "--out", "made", "--base", "MODEL", "--strength", "nan"],
            "strength|finite",
        ),
        (
            "apply, onto the base",
            ["apply", "EDIT", "--out", "MODEL", "--base", "MODEL"],
            "--force|base|another",
        ),
        (
            "apply, onto a file",
            ["apply", "EDIT", "--out", "STUDY", "--base", "MODEL"],
            "study.toml",
        ),
        ("chat, no edit", ["chat", "none"], "none"),
        (
            "chat, a temperature below 0",
            ["chat", "EDIT", "--base", "MODEL", "--temperature", "-1"],
            "temperature",
        ),
        ("chat, no tokens", ["chat", "EDIT", "--base", "MODEL", "--tokens", "0"], "tokens"),
        (
            "chat, a strength that is none",
            ["chat", "EDIT", "--base", "MODEL", "--strength", "nan"],
            "strength",
        ),
        ("chat, a negative seed", ["chat", "EDIT", "--base", "MODEL", "--seed", "-1"], "seed"),
        (
            "control vector, gains",
            ["control-vector", "EDIT", "--base", "MODEL", "--out", "x.gguf"],
            "gguf|vector|gain|scale",
        ),
        (
            "control vector, a folder",
            ["control-vector", "EDIT", "--base", "MODEL", "--out", "MODEL"],
            ".",
        ),
    ):

        def named(inputs: Inputs, arguments: Arguments = arguments) -> Arguments:
            places = {"MODEL": inputs.model, "EDIT": inputs.edit, "STUDY": inputs.study}
            return [str(places.get(word, word)) for word in arguments]

        yield Case(name, named, words)


def runs() -> Iterator[Case]:
    """Run folders whose files were damaged, shown again."""
    wrong = {
        "empty": b"",
        "null": b"null",
        "a list": b"[]",
        "a number": b"3",
        "cut": b'{"rows": [',
        "Latin-1": b'{"rows": "\xe9"}',
        "deep": DEEP,
        "another object": b"{}",
    }
    for file in ("run.json", "results.json"):
        for name, content in wrong.items():
            yield Case(f"report, {file} is {name}", damaged(file, content), file)
        yield Case(f"report, no {file}", damaged(file, None), f"has no .*{file}")
    for name, content, words in (
        ("no JSON", b"{", "results.json .*not valid JSON"),
        ("no rows", b'{"rows": []}', "has no rows"),
        ("an empty row", b'{"rows": [{}]}', "a row that cannot be read"),
        (
            "half a character",
            b'{"rows": [{"intervention": "\\ud83d", "control_of": null}]}',
            "half of a character",
        ),
    ):
        yield Case(f"report, results.json: {name}", damaged("results.json", content), words)
    for name, content in (("empty", b""), ("text", b"hello " * 99), ("cut", b"PAR1\x00\x00PAR1")):
        yield Case(
            f"report, neurons.parquet is {name}",
            damaged("neurons.parquet", content),
            "neurons.parquet .*damaged or no Parquet",
        )


def damaged(file: str, content: bytes | None) -> Callable[[Inputs], Arguments]:
    """A finished run in which a file holds something else, or is gone."""

    def build(inputs: Inputs) -> Arguments:
        change = without(file) if content is None else written(file, content)
        change(shutil.copytree(inputs.run, inputs.root / "run"))
        return ["report", "run"]

    return build


def models() -> Iterator[Case]:
    """Models, tokenizers and adapters that are not what they should be (see `broken_models`)."""

    def broken(
        change: Build, words: str, option: str, name: str, start: Build, template: str = "none"
    ) -> Case:
        def build(inputs: Inputs) -> Arguments:
            folder = inputs.root / "broken"
            folder.mkdir()
            start(folder)
            change(folder)
            return [*inputs.command(f"template={template}"), option, str(folder)]

        return Case(name, build, words)

    for name, (change, words) in {**MODELS, **TOKENIZERS}.items():
        yield broken(change, words, "--model", f"--model, {name}", whole)
    for name, (change, words) in APART.items():
        yield broken(change, words, "--tuned", f"--tuned, {name}", whole)
    for name, (template, setting, words) in CHAT_TEMPLATES.items():
        change = without() if template is None else written("chat_template.jinja", template)
        yield broken(change, words, "--model", f"a chat template, {name}", whole, setting)
    for name, (change, words) in ADAPTERS.items():
        yield broken(change, words, "--tuned", f"--tuned, an adapter: {name}", adapter)


CASES: tuple[Case, ...] = (*folders(), *deltas(), *runs(), *models())
