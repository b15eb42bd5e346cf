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

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ..files import write_text
from ..study import published
from ..study.notes import noted
from ..terminal import printable
from . import paper
from .chart_style import drawing_script, embedded, save
from .claims import claims
from .figures import run_figures
from .page_tables import control_table, group_table, judge_table, probe_table, table_two
from .rules import SPEAKING_WORDS
from .run import Result, Run, load
from .text import number
from .verdict import findings

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
    paper.write_tables(run)
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
    page = environment.get_template("page.html").render(_content(run))
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


def _content(run: Run) -> dict[str, Any]:
    plates = _plates(run)
    script = drawing_script() if any(plates.values()) else ""
    return {
        "policy": _policy(script),
        "claims": claims(run, folder=run.folder),
        "speaking": SPEAKING_WORDS,
        "rounding": _rounding(run),
        "paper_tables": paper.paper_tables(run),
        "figures": plates,
        "script": Markup(script),
        "style": Markup(
            (resources.files("dialdown") / "report" / "style.css").read_text(encoding="utf-8")
        ),
        "run": run,
        "facts": _facts(run),
        "findings": findings(run, folder=run.folder),
        "results": table_two(run),
        "published": published.row(run.model, "none") is not None,
        "control_tables": {
            run.concept: control_table(run, "toxicity"),
            "log-perplexity": control_table(run, "log_ppl"),
        },
        "groups": group_table(run),
        "noted": noted(run.info),
        "samples": _samples(run),
        "probe": probe_table(run),
        "judges": judge_table(run),
        "stages": _stages(run),
        "versions": {**run.info.get("versions", {}), **run.info.get("machine", {})},
        "settings": list(_flat(run.info.get("config") or {})),
        "few_windows": _few_windows(run),
    }


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
        rows = [one for one in run.results if one.protocol == protocol and one.samples]
        order = {name: place for place, name in enumerate([*FEATURED, *run.names()])}
        rows.sort(
            key=lambda one: (
                order.get(one.control_of or one.name, len(order)),
                one.control_of is not None,
            )
        )
        featured = sorted(
            (one for one in rows if one.name in FEATURED), key=lambda one: FEATURED.index(one.name)
        )
        others = [one for one in rows if one.name not in FEATURED]
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


def _by_prompt(rows: Sequence[Result]) -> list[Sample]:
    # Rows share their prompts, in the same order; a control may have been measured on fewer.
    longest: Sequence[tuple[str, str]] = max((one.samples for one in rows), key=len, default=())
    return [
        Sample(
            prompt,
            [
                (one.label, one.protocol, one.samples[place][1])
                for one in rows
                if len(one.samples) > place
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
    counts = [one.metrics["log_ppl"].n for one in run.results if "log_ppl" in one.metrics]
    return min(counts) if counts and min(counts) < 10 else None


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"{prefix}{key}", "not set" if value is None else shown
