"""Inputs that cannot work, one line each: its name, the command, and words of the sentence that
refuses it.

Every builder gets a folder of its own and the files of a tiny study; the command is what a user
would type.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from helpers.broken_models import (
    ADAPTERS,
    APART,
    CHAT_TEMPLATES,
    MODELS,
    TOKENIZERS,
    Build,
    adapter,
    whole,
    without,
    written,
)

Arguments = list[str]


@dataclass(frozen=True)
class Inputs:
    """What a case may build on.

    Attributes:
        root: an empty folder of its own, in which the command runs.
        study: the TOML file of a tiny study that works.
        model: the folder of its model.
        edit: a folder with an edit of that model.
        run: a finished run.
    """

    root: Path
    study: Path
    model: Path
    edit: Path
    run: Path

    def command(self, *settings: str, stage: str = "run") -> Arguments:
        """The study, with some settings changed."""
        return [stage, str(self.study), "--out", str(self.root / "out"), *sets(*settings)]


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        name: of the test.
        build: makes the input and returns the command's arguments.
        words: a regular expression that the sentence matches.
        environment: variables that are set.
        typed: bytes on the standard input.
    """

    name: str
    build: Callable[[Inputs], Arguments]
    words: str
    environment: tuple[tuple[str, str], ...] = ()
    typed: bytes = b""


def sets(*settings: str) -> Arguments:
    return [word for setting in settings for word in ("--set", setting)]


def file_setting(
    setting: str, name: str, content: bytes, *more: str
) -> Callable[[Inputs], Arguments]:
    """A file of this content, named by a setting."""

    def build(inputs: Inputs) -> Arguments:
        (inputs.root / name).write_bytes(content)
        return inputs.command(f"{setting}={inputs.root / name}", *more)

    return build


HALF = r"\ud83d"
DEEP = b"[" * 100_000
ROW = b'{"prompt": "a", "gold": "b", "text": "c", "label": 1}\n'
# Where a text stands in a row -> what it may not be.
NO_TEXTS: dict[str, tuple[str, str]] = {
    "null": ("null", "is null, which is no text"),
    "a number": ("3", "is 3, which is no text"),
    "true": ("true", "is True, which is no text"),
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
        ("a number", "t.jsonl", b'{"text": 3}', "is 3, which is no text"),
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


# Assignments -> words.
SETTINGS: tuple[tuple[str, str], ...] = (
    ("seed", "KEY=VALUE"),
    ("=3", "Unknown setting"),
    ("sed=3", "did you mean 'seed'"),
    ("zzz=3", "known are"),
    ("dpo.learnin_rate=1", "did you mean 'learning_rate'"),
    ("learning_rate=1", "did you mean 'dpo.learning_rate'"),
    ("dpo_beta=1", "did you mean 'dpo.beta'"),
    ("evaluate.count=1", "did you mean 'evaluation'"),
    ("dpo..beta=1", "Unknown setting"),
    ("dpo.beta.x=1", "dpo.beta"),
    ("seed.x=1", "seed"),
    ("dpo.seed=1", "set seed"),
    ("dpo=1", "is a section"),
    ("dpo=1|dpo.beta=2", "is the section of dpo.beta too"),
    ("dpo.beta=2|dpo=1", "is a section"),
    ("dpo=[1]", "is a section"),
    ("dpo={betta=1}", "did you mean 'beta'"),
    ("seed=abc", "seed = 'abc'"),
    ("seed=-1", "seed = '-1'"),
    ("seed=1.5", "seed = '1.5'"),
    ("seed=nan", "seed = 'nan'"),
    ("seed=4294967296", "out of range"),
    ("seed=" + "9" * 5000, "seed"),
    ("seed=[1]", "seed"),
    ("seed=", "seed"),
    ("workers=0", "workers"),
    ("workers=many", "workers = 'many'"),
    ("protocols=strikt", "protocols"),
    ("protocols=[]", "protocols"),
    ("protocols=strict,strict", "names 'strict' twice"),
    ('protocols=["strict", 3]', "protocols"),
    ("protocols=[strict", "protocols"),
    ("dtype=float8", "dtype = 'float8'"),
    ("device=cuda:99", "device 'cuda:99' cannot be used"),
    ("device=toaster", "device 'toaster' cannot be used"),
    ("device=mps", "device 'mps'"),
    ("template=chats", "template = 'chats'"),
    ("template=", "template"),
    ("concept=", "concept is blank"),
    ("concept=a\nb", "line break"),
    ("concept=a\x1b[31m", "control character"),
    ('concept="a\\nmodel = b"', "line break"),
    ("concept=\udcff", "half of a character"),
    ("model=", "model is blank"),
    ("tuned= ", "tuned is blank"),
    ("evaluation.prompts=", "evaluation.prompts is blank"),
    ('evaluation.prompts="a\\u0000.txt"', "control character"),
    ("evaluation.count=0", "evaluation.count"),
    ("evaluation.count=1e3", "evaluation.count"),
    ("evaluation.count=15", "evaluation.prompts and evaluation.count: "),
    ("evaluation.count=9999999999", "out of range"),
    ("evaluation.batch_size=0", "evaluation.batch_size"),
    ("evaluation.batch_size=true", "evaluation.batch_size"),
    ("evaluation.window=1", "evaluation.window"),
    ("evaluation.window=97", "evaluation.window to 96"),
    (
        "evaluation.window=90|evaluation.kl_windows=9|evaluation.max_windows=9",
        "evaluation.kl_windows",
    ),
    ("evaluation.max_new_tokens=92", "evaluation.max_new_tokens"),
    ("evaluation.max_new_tokens=0", "evaluation.max_new_tokens"),
    ("evaluation.pairs_count=5", "evaluation.pairs_count"),
    ("evaluation.judge=zzz", "no toxicity scorer 'zzz'"),
    ("evaluation.judge=embedded:ngrm", "did you mean 'embedded:ngram'"),
    ("evaluation.pair_scorer=embedded:zzz", "no toxicity scorer"),
    ("evaluation.judge=/none/here#toxic", "evaluation.judge: .*could not be loaded"),
    (
        "evaluation.judge=embedded:ngram|evaluation.pair_scorer=embedded:ngram",
        "would judge the pairs it made",
    ),
    ("evaluation.judge=probe|protocols=paper", "add strict to protocols"),
    ("interventions.alpha=1.5", "interventions.alpha"),
    ("interventions.alpha=nan", "interventions.alpha"),
    ("interventions.control_seeds=4", "interventions.control_seeds"),
    ("interventions.ordering=random", "interventions.ordering"),
    ("interventions.families=edits,zzz", "interventions.families"),
    ("interventions.steering_strength=inf", "interventions.steering_strength"),
    ("front.count=11", "lower front.count"),
    ("front.count=-1", "front.count"),
    ("front.gains=0.5,0", "front.gains"),
    ("front.gains=a", "front.gains"),
    ("pairs.count=0", "count = 0"),
    ("pairs.count=61", "pairs.count"),
    ("pairs.margin=nan", "margin"),
    ("pairs.margin=inf", "margin"),
    ("pairs.temperature=0", "temperature"),
    ("pairs.temperature=nan", "temperature"),
    ("pairs.top_k=0", "top_k"),
    ("pairs.sampled=0|pairs.steered=1", "two candidates"),
    ("pairs.greedy=perhaps", "pairs.greedy"),
    ("pairs.max_new_tokens=92", "pairs.max_new_tokens"),
    ("dpo.beta=-1", "beta"),
    ("dpo.beta=nan", "beta"),
    ("dpo.kl_weight=-1", "kl_weight"),
    ("dpo.optimizer=sgd", "optimizer"),
    ("dpo.optimizer=natural", "natural gradient"),
    ("dpo.kl_direction=both", "kl_direction"),
    ("dpo.max_steps=0", "max_steps"),
    ("gains.damping=-1", "damping"),
    ("gains.own_kl_weight=inf", "own_kl_weight"),
    ("probe.count=0", "probe.count"),
    ("probe.count=62", "probe.texts and probe.count: 31 were"),
    ("probe.max_tokens=97", "lower probe.max_tokens"),
    ("probe.max_words=0", "probe.max_words"),
    ("probe.max_words=1", "There are no"),
    ("probe.positive=the|probe.negative=The", "on both sides"),
    ("probe.positive=[]", "at least one positive"),
    ("probe.positive=[1]", "probe.positive"),
    ('probe.positive=[" "]', "probe.positive is blank"),
    ("token_judge=zzz", "no toxicity scorer"),
    ("token_judge=openai:", "names no model"),
    ("token_judge=openai:gpt@ftp://x", "plain address|names no model|needs a key"),
    ("detox.max_kl=0", "detox.max_kl"),
    ("revision=a\tb", "control character"),
)
# What a file of settings holds -> words.
FILES: tuple[tuple[str, bytes, str], ...] = (
    ("no TOML", b"seed 3", "not valid TOML"),
    ("Latin-1", "concept = 'é'".encode("latin-1"), "cannot be read"),
    ("zero bytes", "seed = 3".encode("utf-16-le"), "zero bytes"),
    ("a key twice", b"seed = 1\nseed = 2", "not valid TOML"),
    ("deep lists", b"seed = " + DEEP, "nested too deeply|not valid TOML"),
    ("5000 digits", b"seed = " + b"9" * 5000, "not valid TOML"),
    ("nan", b"[pairs]\nmargin = nan", "margin"),
    ("a list of sections", b"[[dpo]]\nbeta = 1", "is a section"),
    ("a section as value", b"dpo = 1", "is a section"),
    ("a value as section", b"[seed]\nx = 1", "seed"),
    ("a digits revision", b"revision = 1234567", "revision"),
    ("a date", b"concept = 2020-01-01", "concept"),
    ("a line break", b'concept = """a\nb"""', "line break"),
    ("an unknown key", b"[dpo]\nbetta = 1", "did you mean 'beta'"),
    ("an escape in a key", b'"\\u001b[31mseed" = 1', "Unknown setting"),
)
VARIABLES: tuple[tuple[str, str, str], ...] = (
    ("DIALDOWN_SED", "3", "environment variable DIALDOWN_SED: did you mean 'seed'"),
    ("DIALDOWN_DPO__BETTA", "1", "environment variable DIALDOWN_DPO__BETTA: did you mean 'beta'"),
    ("DIALDOWN_DPO_BETA", "1", "did you mean 'dpo.beta'"),
    ("dialdown_dpo__betta", "1", "did you mean 'beta'"),
    ("DIALDOWN__SEED", "1", "DIALDOWN__SEED: did you mean 'seed'"),
    ("DIALDOWN_DPO", "1", "is a section"),
    ("DIALDOWN_DPO__SEED", "1", "set seed"),
    ("DIALDOWN_SEED", "three", "seed = 'three'"),
    ("DIALDOWN_PROTOCOLS", "strikt", "protocols"),
    ("DIALDOWN_CONCEPT", "a\nb", "line break"),
    ("DIALDOWN_CONCEPT", "a\udcff", "half of a character"),
    ("DIALDOWN_WORKERS", "0", "workers"),
)


def setting_cases() -> Iterator[Case]:
    """Settings from flags, files and variables."""
    for text, words in SETTINGS:
        name = text if len(text) < 60 else f"{text[:20]}..."
        yield Case(f"--set {name!a}", lambda i, text=text: i.command(*text.split("|")), words)
    for name, content, words in FILES:

        def build(inputs: Inputs, content: bytes = content) -> Arguments:
            (inputs.root / "mine.toml").write_bytes(content)
            return ["run", "mine.toml", "--out", "out"]

        yield Case(f"a file of settings, {name}", build, words)
    yield Case(
        "a folder of settings", lambda i: ["run", str(i.model), "--out", "out"], "is a folder"
    )
    yield Case(
        "no file of settings",
        lambda i: ["run", "none.toml", "--out", "out"],
        "none.toml does not exist",
    )
    yield Case(
        "a preset", lambda i: ["run", str(i.study), "--preset", "demmo"], "did you mean 'demo'\\?$"
    )
    for name, value, words in VARIABLES:
        yield Case(
            f"{name}={value!a}",
            lambda i: ["run", str(i.study), "--out", "out"],
            words,
            ((name, value),),
        )


def commands() -> Iterator[Case]:
    """Arguments of the commands."""
    for name, arguments, words in (
        ("no command", ["zzz"], "No such command"),
        ("an unknown option", ["run", "--zzz"], "No such option"),
        ("a seed in words", ["run", "--seed", "three"], "Invalid value"),
        ("detox without a folder", ["detox", "model"], "Missing option"),
        (
            "a strength in words",
            ["apply", "edit", "--out", "o", "--strength", "much"],
            "Invalid value",
        ),
    ):
        yield Case(name, lambda i, arguments=arguments: arguments, words)
    for name, arguments, words in (
        (
            "an unknown model",
            ["--model", "embedded:gpt"],
            "did you mean|known are 'gemma-3-270m', 'smollm2-135m'",
        ),
        ("a misspelt model", ["--model", "embedded:smolm2-135m"], "did you mean 'smollm2-135m'"),
        ("a data set as model", ["--model", "embedded:comments"], "no embedded model"),
        ("a missing model", ["--model", "/none/here"], "could not be loaded|does not exist"),
        ("a file as model", ["--model", "STUDY"], "could not be loaded|is a file|no folder"),
        ("an empty folder as model", ["--model", "EMPTY"], "config.json"),
        ("a missing tuned model", ["--tuned", "/none/here"], "tuned"),
        ("an empty folder as tuned model", ["--tuned", "EMPTY"], "tuned|config.json"),
    ):

        def build(inputs: Inputs, arguments: Arguments = arguments) -> Arguments:
            (inputs.root / "empty").mkdir()
            places = {"STUDY": str(inputs.study), "EMPTY": str(inputs.root / "empty")}
            return [*inputs.command(), *(places.get(word, word) for word in arguments)]

        yield Case(name, build, words)
    for name, arguments, words in (
        ("two dials", ["--strength", "1", "--max-kl", "0.1"], "pass one of them"),
        ("a strength of 0", ["--strength", "0"], "detox.strength"),
        ("a strength that is none", ["--strength", "nan"], "detox.strength"),
        ("a negative budget", ["--max-kl", "-1"], "detox.max_kl"),
        ("an infinite budget", ["--max-ppl-increase", "inf"], "detox.max_ppl_increase"),
        ("the paper protocol alone", sets("protocols=paper"), "add strict"),
        ("a tuned model", sets("tuned=x"), "leave tuned out"),
        (
            "too few prompts",
            sets("evaluation.count=15"),
            "evaluation.prompts and evaluation.count: ",
        ),
        ("no neutral text", sets("evaluation.pairs_count=4"), "lower evaluation.pairs_count"),
    ):
        yield Case(
            f"detox, {name}",
            lambda i, a=arguments: [
                "detox",
                str(i.model),
                "--config",
                str(i.study),
                "--out",
                "made",
                "--no-verify",
                *a,
            ],
            words,
        )


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
            f"{name}, other settings",
            lambda i, name=name: [name, str(i.study), "--out", str(i.run), "--seed", "3"],
            "other settings|holds no study|needs|holds",
        )
    yield Case("report, nothing", lambda i: ["report", "none"], "none")
    yield Case("report, a file", lambda i: ["report", str(i.study)], "study.toml")
    yield Case("report, a model", lambda i: ["report", str(i.model)], "run.json|no study")


def field(*keys: str, value: object) -> Callable[[Path], None]:
    """Set one field of edit.json."""

    def tamper(folder: Path) -> None:
        record = json.loads((folder / "edit.json").read_text(encoding="utf-8"))
        place = record
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (folder / "edit.json").write_text(json.dumps(record), encoding="utf-8")

    return tamper


def holding(name: str, content: bytes) -> Callable[[Path], None]:
    """Put other content in a file's place."""
    return lambda folder: (folder / name).write_bytes(content) and None


def cut(name: str, size: int) -> Callable[[Path], None]:
    """Keep the first bytes of a file."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size]) and None


# What is done to the two files of an edit -> words.
DELTAS: tuple[tuple[str, Callable[[Path], None], str], ...] = (
    ("no record", lambda folder: (folder / "edit.json").unlink(), "holds no delta"),
    ("no tensors", lambda folder: (folder / "edit.safetensors").unlink(), "edit.safetensors"),
    ("an empty record", holding("edit.json", b""), "edit.json"),
    ("a null record", holding("edit.json", b"null"), "edit.json"),
    ("a list as record", holding("edit.json", b"[]"), "edit.json"),
    ("a number as record", holding("edit.json", b"3"), "edit.json"),
    ("a cut record", cut("edit.json", 50), "edit.json"),
    ("a record in Latin-1", holding("edit.json", b'{"kind": "\xe9"}'), "edit.json"),
    ("a deep record", holding("edit.json", DEEP), "edit.json"),
    ("empty tensors", holding("edit.safetensors", b""), "edit.safetensors"),
    ("cut tensors", cut("edit.safetensors", 100), "edit.safetensors"),
    ("tensors that are text", holding("edit.safetensors", b"hello " * 99), "edit.safetensors"),
    (
        "a git-lfs pointer",
        holding("edit.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        "edit.safetensors",
    ),
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

        def build(inputs: Inputs, tamper: Callable[[Path], None] = tamper) -> Arguments:
            folder = copied(inputs.edit, inputs.root / "edit")
            tamper(folder)
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


def copied(folder: Path, to: Path) -> Path:
    """A copy of a folder of files."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


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
        yield Case(f"report, no {file}", damaged(file, None), file)
    for name, content in (("empty", b""), ("text", b"hello " * 99), ("cut", b"PAR1\x00\x00PAR1")):
        yield Case(
            f"report, neurons.parquet is {name}",
            damaged("neurons.parquet", content),
            "neurons.parquet",
        )


def damaged(file: str, content: bytes | None) -> Callable[[Inputs], Arguments]:
    """A finished run in which a file holds something else, or is gone."""

    def build(inputs: Inputs) -> Arguments:
        folder = inputs.root / "run"
        for path in sorted(inputs.run.rglob("*")):
            if path.is_file():
                to = folder / path.relative_to(inputs.run)
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_bytes(path.read_bytes())
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(content)
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


CASES: tuple[Case, ...] = (
    *file_cases(),
    *source_cases(),
    *label_cases(),
    *text_cases(),
    *setting_cases(),
    *commands(),
    *folders(),
    *deltas(),
    *runs(),
    *models(),
)
