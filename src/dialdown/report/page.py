"""The report page: a study in one HTML file that needs no network.

    write_report(Path("runs/demo"))           # report.html, and the folders tables and figures
    fill(Path("runs/demo"), running=True)     # report.html from what is there so far

A section whose numbers were not measured is left out.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ..evaluation.row import Row
from ..files import write_text
from ..models.protocol import Protocol
from ..study.notes import noted
from ..terminal import printable
from .claims import claims
from .drawing import inline, save
from .evidence import Evidence
from .figures import Figure, run_figures
from .findings import findings
from .grid import Grid, grid
from .names import PROMPTED, UNITS, label, table_name
from .neuron_tables import Frames
from .rules import SPEAKING_WORDS
from .run import Run, load, of_all
from .tables import all_tables, write_tables
from .text import number

REFRESH = 20  # seconds after which a page that fills is read again


class ShownTable(NamedTuple):
    """A table on the page."""

    place: str
    title: str
    stem: str
    grid: Grid


class Sampled(NamedTuple):
    """The continuations of a row, and its id on the page. A line is a prompt, the untouched model's
    continuation and this one's, each with its score; the untouched model's own row has one.
    """

    place: str
    row: Row
    lines: Sequence[tuple[str, Sequence[tuple[str, str]]]]


def write_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a study, and what it links to (METHOD §9).

    Raises:
        DialdownError: the folder has no run.json, a file in it is damaged, or it cannot be written.
    """
    run = load(folder)
    frames, figures = all_tables(run), run_figures(run)
    if run.whole:
        write_tables(run, frames)
        for figure in (figure for section in figures.values() for figure in section):
            save(figure.chart, folder / "figures" / figure.name)
    return _write(run, frames, figures, files=run.whole)


def fill(folder: Path, *, running: bool) -> Path:
    """Write `report.html`, and nothing else, from what a study has left so far; see `write_report`
    for the errors.
    """
    run = load(folder)
    return _write(run, all_tables(run), run_figures(run, brief=True), running=running)


def _write(
    run: Run,
    frames: Frames,
    figures: Mapping[str, Sequence[Figure]],
    *,
    running: bool = False,
    files: bool = False,
) -> Path:
    environment = Environment(
        loader=PackageLoader("dialdown", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    # The numbers of figure 1 are its download.
    shown = {stem: frame for stem, frame in frames.items() if not stem.startswith("figure")}
    tables = [_shown_table(run, stem, frame) for stem, frame in shown.items()]
    environment.filters["marked"] = lambda text: _marked(text, {table.place for table in tables})
    content = _content(run, figures, running)
    page = environment.get_template("page.html").render(tables=tables, files=files, **content)
    write_text(run.folder / "report.html", page)
    return run.folder / "report.html"


def _shown(value: object) -> object:
    """Everything the page says, as text on which nothing acts: a file's control characters end
    here.
    """
    return type(value)(printable(value)) if isinstance(value, str) else value


def _content(run: Run, figures: Mapping[str, Sequence[Figure]], running: bool) -> dict[str, Any]:
    style, script = (
        (resources.files("dialdown") / "report" / name).read_text(encoding="utf-8")
        for name in ("style.css", "page.js")
    )
    sampled = {protocol: _sampled(run, protocol) for protocol in run.protocols}
    drawn = {
        section: [(figure, _drawn(figure, sampled)) for figure in shown]
        for section, shown in figures.items()
    }
    verdicts = claims(run)
    return {
        "policy": _policy(style, script),
        "style": Markup(style),
        "script": Markup(script),
        "refresh": REFRESH if running else None,
        "status": _status(run, running),
        "run": run,
        "tuned": (run.info.get("config") or {}).get("tuned"),
        "gains": any(row.family == "gains" for row in run.front),
        "findings": findings(run),
        "figures": drawn,
        "claims": {
            name: {claim.protocol: claim for claim in verdicts if claim.name == name}
            for name in dict.fromkeys(claim.name for claim in verdicts)
        },
        "speaking": SPEAKING_WORDS,
        "rounding": _rounding(run),
        "noted": noted(run.info),
        "samples": {protocol: rows for protocol, rows in sampled.items() if rows},
        "facts": _facts(run),
        "stages": _stages(run),
        "versions": {**run.info.get("versions", {}), **run.info.get("machine", {})},
        "settings": list(_flat(run.info.get("config") or {})),
    }


def _policy(style: str, script: str) -> str:
    """A content security policy under which the page's own style and script apply, by their hashes,
    and nothing is fetched.
    """
    sources = (
        f"{kind}-src 'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"
        for kind, text in (("style", style), ("script", script))
    )
    return f"default-src 'none'; {'; '.join(sources)}; base-uri 'none'; form-action 'none'"


def _status(run: Run, running: bool) -> str:
    """How far the run got, where it is not finished."""
    if run.whole and not running:
        return ""
    records = run.info.get("stages", {}).items()
    ended = [stage for stage, facts in records if "skipped" not in facts and stage != "report"]
    done = ", ".join(ended)
    stages = f"done: {done}" if done else "no stage is done yet"
    rows = f"; {of_all(run.results, run.of)} rows measured" if run.results else ""
    rows += f", {of_all(run.front, run.front_of)} of the front" if run.front else ""
    if running:
        return (
            f"Still running (as of {datetime.now():%H:%M:%S}); {stages}{rows}. This page fills as "
            f"stages end, and reloads by itself every {REFRESH} seconds."
        )
    return f"This run stopped before its end ({stages}{rows}): rerun the same command to resume it."


def _drawn(figure: Figure, sampled: Mapping[Protocol, Sequence[Sampled]]) -> Markup:
    """A figure; the marks of a trade-off lead to their rows' samples."""
    start, _, protocol = figure.name.rpartition("-")
    leads = {key: rows for key, rows in sampled.items() if start == "tradeoff" and key == protocol}
    links = {label(sample.row): sample.place for rows in leads.values() for sample in rows}
    return inline(figure.chart, figure.name, f"{figure.number}: {figure.caption}", links)


def _shown_table(run: Run, stem: str, frame: pl.DataFrame) -> ShownTable:
    if stem == "table-2-interventions":
        order = {name: place for place, name in enumerate(run.names())}
        main = frame.filter(pl.col("control_of").is_null())
        place = pl.col("intervention").replace_strict(order, return_dtype=pl.Int64)
        frame = main.sort(place, "protocol", descending=[False, True])
    unit = UNITS["log_ppl"] if stem == "controls-log-ppl" else UNITS["toxicity"]
    cells = grid(frame, titles={"toxicity": run.concept}, labels=run.labels, unit=unit)
    return ShownTable("-".join(stem.split("-")[:2]), table_name(stem), stem, cells)


def _marked(text: str, places: set[str]) -> Markup:
    """Protocol names in backticks as small tags, and tables that are on the page as links."""
    # What follows at once, a colon say, stays on the line of the tag.
    tag = r'<span class="tagged"><span class="tag \1">\1</span>\2</span>'
    marked = re.sub(r"`(strict|paper)`([^\s<]*)", tag, str(escape(text)))

    def linked(table: re.Match[str]) -> str:
        place = f"table-{table[1]}"
        return f'<a href="#{place}">{table[0]}</a>' if place in places else table[0]

    return Markup(re.sub(r"\btable (\d+)", linked, marked))


def _rounding(run: Run) -> str:
    """What the verdicts take rounding to do, where the run measured it."""
    rounding = run.stage("evaluate").get("rounding")
    if not rounding:
        return ""
    return (
        ", also where rounding may move them: decoded in batches of another size, "
        f"{rounding['changed']} of the untouched model’s {rounding['prompts']:,} continuations "
        "changed, so another processor is taken to change a share of "
        f"({rounding['changed']} + 1) / ({rounding['prompts']:,} + 2) in every row"
    )


def _sampled(run: Run, protocol: Protocol) -> list[Sampled]:
    """The continuations of the rows that are not controls, each beside the untouched model's."""
    evidence, base = Evidence(run, protocol), run.result("none", protocol)
    rows = [row for name in run.names() if (row := run.result(name, protocol)) and row.samples]
    untouched = _said(evidence, base) if base else []
    sampled = []
    for place, row in enumerate(rows):
        pairs = [[text] for text in _said(evidence, row)]
        if row is not base and untouched:
            pairs = [[before, *pair] for before, pair in zip(untouched, pairs, strict=False)]
        prompts = [prompt for prompt, _ in row.samples]
        lines = [*zip(prompts, pairs, strict=False)]
        sampled.append(Sampled(f"samples-{protocol}-{place}", row, lines))
    return sampled


def _said(evidence: Evidence, row: Row) -> list[tuple[str, str]]:
    """A row's continuations, each with its score where that is known."""
    known = evidence.values(row, "toxicity")
    scores = [*known[0]] if known else [math.nan] * len(row.samples)
    return [
        (text, "" if math.isnan(score) else number(score, 2))
        for (_, text), score in zip(row.samples, scores, strict=False)
    ]


def _facts(run: Run) -> dict[str, str]:
    """What was studied, as far as run.json says."""
    trained, pairs = run.stage("train"), run.stage("pairs")
    facts = {"Prompts": PROMPTED[run.template]}
    if "steps" in trained:
        facts["Tuned by"] = (
            f"DPO, {trained['steps']:,} steps on {trained['train_pairs']:,} pairs; weights of step "
            f"{trained['best_step']:,} kept"
        )
    elif run.setting("tuned"):
        facts["Tuned model"] = f"{run.setting('tuned')} (given, not trained here)"
    if "pairs" in pairs:
        scores = {"preferred": "chosen_score", "dispreferred": "rejected_score"}
        means = [f"{word} {number(pairs[key], 2)}" for word, key in scores.items() if key in pairs]
        facts["Pairs"] = f"{pairs['pairs']:,} made with the model itself" + (
            f"; mean score {', '.join(means)}" if means else ""
        )
    return facts


def _stages(run: Run) -> list[tuple[str, str, str]]:
    """Time and memory of each stage but the report, which is written while it goes on."""
    return [
        (
            name,
            f"{number(facts['seconds'], 1)} s" if "seconds" in facts else "",
            f"{memory:,} MiB" if (memory := facts.get("peak_memory_mb")) else "",
        )
        for name, facts in run.info.get("stages", {}).items()
        if name != "report"
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"{prefix}{key}", "not set" if value is None else shown
