"""The report page: verdict, tables, figures and samples of a study in one HTML file that needs no
network.

    write_report(Path("runs/demo"))   # writes runs/demo/report.html

A section whose numbers were not measured is left out.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ..evaluation.row import Row
from ..files import write_text
from ..study import published
from ..study.notes import noted
from ..terminal import printable
from .chart_style import drawing_script, embedded, save
from .claims import claims
from .figures import run_figures
from .findings import findings
from .grid import Grid, grid
from .names import UNITS, label, table_name
from .neuron_tables import Frames
from .rules import SPEAKING_WORDS
from .run import Run, load
from .tables import control_table, scorer_table, write_tables
from .text import number

# Shown first among the samples; everything else is one click further.
FEATURED = (
    "none",
    "dpo",
    "steer_probe",
    "patch_four_groups",
    "edit_probe_set",
    "edit_probe_shift",
    "edit_probe_scale",
    "edit_probe_set__random_neurons",
)


@dataclass(frozen=True)
class Plate:
    """A figure on the page: its chart as JSON."""

    name: str
    caption: str
    chart: Markup


@dataclass(frozen=True)
class ShownTable:
    """One of the paper's tables on the page: number and caption, the file, and its cells."""

    title: str
    file: str
    grid: Grid


@dataclass(frozen=True)
class Sample:
    """One prompt and its continuations: label, stable name, text."""

    prompt: str
    continuations: Sequence[tuple[str, str, str]]


def write_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a study (METHOD §9).

    Returns:
        Its path.

    Raises:
        DialdownError: the folder has no run.json or results.json, a file in it is damaged, or it
            cannot be written.
    """
    run = load(folder)
    frames = write_tables(run)
    loader = PackageLoader("dialdown", "report")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters["marked"] = _marked
    page = environment.get_template("page.html").render(_content(run, frames))
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _shown(value: object) -> object:
    """Everything the page says, as text on which nothing acts: a file's control characters end
    here.
    """
    return type(value)(printable(value)) if isinstance(value, str) else value


def _policy(script: str) -> str:
    """A content security policy under which the page's own script runs, by its hash, and nothing is
    fetched.
    """
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    source = f"'sha256-{digest}'" if script else "'none'"
    return (
        f"default-src 'none'; script-src {source}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _content(run: Run, frames: Frames) -> dict[str, Any]:
    plates = _plates(run)
    script = drawing_script() if any(plates.values()) else ""
    return {
        "policy": _policy(script),
        "claims": claims(run, folder=run.folder),
        "speaking": SPEAKING_WORDS,
        "rounding": _rounding(run),
        "figures": plates,
        "script": Markup(script),
        "style": Markup(
            (resources.files("dialdown") / "report" / "style.css").read_text(encoding="utf-8")
        ),
        "run": run,
        "facts": _facts(run),
        "findings": findings(run, folder=run.folder),
        "published": published.row(run.model, "none") is not None,
        "noted": noted(run.info),
        "samples": _samples(run),
        **_tables(run, frames),
        "stages": _stages(run),
        "versions": {**run.info.get("versions", {}), **run.info.get("machine", {})},
        "settings": list(_flat(run.info.get("config") or {})),
        "few_windows": _few_windows(run),
    }


def _tables(run: Run, frames: Frames) -> dict[str, Any]:
    """The tables by the section they stand in, each once."""
    shown = {stem: _shown_table(run, stem, frame) for stem, frame in frames.items() if len(frame)}
    groups = [stem for stem in ("table-4-group-roles", "table-5-group-shares") if stem in shown]
    judges = len({judge for row in run.results for judge in row.toxicity_by})
    metrics = {"toxicity": run.concept, "log_ppl": "log-perplexity"}
    controls = {metric: control_table(run, metric) for metric in metrics}
    return {
        "results": shown.pop("table-2-interventions").grid,
        "groups": [shown.pop(stem) for stem in groups],
        "probe": shown.pop("table-11-probe") if run.stage("probe") else None,
        "judges": grid("scorers", scorer_table(run), labels=run.labels) if judges > 1 else None,
        "control_tables": {
            metrics[metric]: grid(
                f"controls-{metric}", frame, labels=run.labels, unit=UNITS[metric]
            )
            for metric, frame in controls.items()
            if len(frame)
        },
        "paper_tables": [*shown.values()],
    }


def _shown_table(run: Run, stem: str, frame: pl.DataFrame) -> ShownTable:
    if stem == "table-2-interventions":
        order = {name: place for place, name in enumerate(run.names())}
        main = frame.filter(pl.col("control_of").is_null())
        place = pl.col("intervention").replace_strict(order, return_dtype=pl.Int64)
        frame = main.sort(place, "protocol", descending=[False, True])
    titles = {"toxicity": run.concept}
    return ShownTable(
        table_name(stem), f"tables/{stem}.csv", grid(stem, frame, titles=titles, labels=run.labels)
    )


def _marked(text: str) -> Markup:
    """Protocol names in backticks as small tags."""
    return Markup(re.sub(r"`(strict|paper)`", r'<span class="tag \1">\1</span>', str(escape(text))))


def _rounding(run: Run) -> str:
    """What the verdicts take rounding to do, where the run measured it."""
    found = run.stage("evaluate").get("rounding")
    if not found:
        return ""
    return (
        ", also where rounding may move them: decoded in batches of another size, "
        f"{found['changed']} of the untouched model’s "
        f"{found['prompts']:,} continuations changed, so another processor is taken to change a "
        "share of "
        f"({found['changed']} + 1) / ({found['prompts']:,} + 2) in every row"
    )


def _facts(run: Run) -> dict[str, str]:
    """What was studied, as far as run.json says."""
    trained, pairs = run.stage("train"), run.stage("pairs")
    facts = {"Model": run.model}
    if revision := run.setting("revision"):
        facts["Revision"] = str(revision)
    if "steps" in trained:
        facts["Tuned by"] = (
            f"DPO, {trained['steps']:,} steps on {trained['train_pairs']:,} pairs; weights of step "
            f"{trained['best_step']:,} kept"
        )
        weights = {
            "β": run.setting("dpo.beta"),
            "γ (weight of the KL term)": run.setting("dpo.kl_weight"),
        }
        facts["DPO"] = (
            ", ".join(f"{name} = {value:g}" for name, value in weights.items() if value is not None)
            or "settings not recorded"
        )
        positions = {
            "completion": "completion tokens",
            "all": "prompt and padding too, as the authors train",
        }
        if over := positions.get(str(run.setting("dpo.kl_positions"))):
            facts["DPO"] += f"; its KL is a mean over {over}"
    elif run.setting("tuned"):
        facts["Tuned model"] = f"{run.setting('tuned')} (given, not trained here)"
    if "pairs" in pairs:
        scores = [
            f"{word} {number(pairs[key], 2)}"
            for key, word in (("chosen_score", "preferred"), ("rejected_score", "dispreferred"))
            if key in pairs
        ]
        facts["Pairs"] = f"{pairs['pairs']:,} made with the model itself" + (
            f"; mean score {', '.join(scores)}" if scores else ""
        )
    facts["Protocols"] = " and ".join(run.protocols)
    if run.setting("seed") is not None:
        facts["Seed"] = str(run.setting("seed"))
    return facts


def _plates(run: Run) -> dict[str, list[Plate]]:
    """The figures of each section, all also written to the folder `figures`."""
    plates: dict[str, list[Plate]] = {}
    for section, figures in run_figures(run).items():
        plates[section] = []
        for name, caption, chart in figures:
            save(chart, run.folder / "figures" / name)
            plates[section].append(Plate(name, caption, Markup(embedded(chart, caption))))
    return plates


def _samples(run: Run) -> list[dict[str, Any]]:
    """By protocol: the featured continuations, and all others."""
    found = []
    for protocol in run.protocols:
        rows = [result for result in run.results if result.protocol == protocol and result.samples]
        order = {name: place for place, name in enumerate([*FEATURED, *run.names()])}
        rows.sort(
            key=lambda result: (
                order.get(result.control_of or result.intervention, len(order)),
                result.control_of is not None,
            )
        )
        featured = sorted(
            (result for result in rows if result.intervention in FEATURED),
            key=lambda result: FEATURED.index(result.intervention),
        )
        others = [result for result in rows if result.intervention not in FEATURED]
        if rows:
            found.append(
                {
                    "protocol": protocol,
                    "featured": _by_prompt(featured),
                    "others": _by_prompt(others),
                    "count": len(others),
                }
            )
    return found


def _by_prompt(rows: Sequence[Row]) -> list[Sample]:
    # Rows share their prompts, in the same order; a control may have been measured on fewer.
    longest: Sequence[tuple[str, str]] = max(
        (result.samples for result in rows), key=len, default=()
    )
    return [
        Sample(
            prompt,
            [
                (label(result), result.protocol, result.samples[place][1])
                for result in rows
                if len(result.samples) > place
            ],
        )
        for place, (prompt, _) in enumerate(longest)
    ]


def _stages(run: Run) -> list[tuple[str, str, str]]:
    stages = run.info.get("stages", {})
    return [
        (
            name,
            f"{number(facts['seconds'], 1)} s" if "seconds" in facts else "",
            f"{memory:,} MiB" if (memory := facts.get("peak_memory_mb")) else "",
        )
        for name, facts in stages.items()
    ]


def _few_windows(run: Run) -> int | None:
    """The number of blocks of text behind log-perplexity, where it is too small for its intervals
    to be leaned on.
    """
    counts = [result.metrics["log_ppl"].n for result in run.results if "log_ppl" in result.metrics]
    return min(counts) if counts and min(counts) < 10 else None


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"{prefix}{key}", "not set" if value is None else shown
