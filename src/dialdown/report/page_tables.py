"""The report's tables. A line belongs to one protocol and says so, so no number stands without it
(METHOD §5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..evaluation.bootstrap import Direction, Estimate
from ..neurons.table import GROUPS
from ..study import published
from .evidence import Evidence
from .run import CONTROL_LABELS, CONTROLS, Result, Run
from .text import interval, number, units

METRICS = {
    "toxicity": "toxicity",
    "log_ppl": "log-perplexity",
    "f1": "F1",
    "kl": "KL",
    "repetition": "repetition",
}
UNITS = {
    "toxicity": "prompts",
    "log_ppl": "blocks",
    "f1": "sentences",
    "kl": "blocks",
    "repetition": "prompts",
    "degenerate": "prompts",
}
GROUP_WORDS = {
    "TP": "writes the concept (c > 0), active above zero",
    "TN": "writes the concept (c > 0), active below zero",
    "AP": "writes against it (c < 0), active above zero",
    "AN": "writes against it (c < 0), active below zero",
}


@dataclass(frozen=True)
class Cell:
    """A number as text, its interval, and a note; an empty cell was not measured."""

    text: str = ""
    interval: str = ""
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Line:
    """The numbers of one protocol, and what holds of its row alone."""

    protocol: str
    cells: Sequence[Cell]
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """What the lines are about."""

    label: str
    note: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Column:
    """A column's title and what stands below it in small print."""

    title: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose every line names its protocol."""

    name: str
    first: str
    columns: Sequence[Column]
    entries: Sequence[Entry]


def table_two(run: Run) -> Table:
    """Table 2 of the paper for this model, both protocols, with the published values where there
    are any.
    """
    names = run.names()
    metrics = [metric for metric in METRICS if any(metric in one.metrics for one in run.results)]
    titles = {**METRICS, "toxicity": run.concept}
    columns = [Column(titles[metric], _units(run, metric)) for metric in metrics]
    entries = []
    most = {
        protocol: max(row.n for row in run.results if row.protocol == protocol)
        for protocol in run.protocols
    }
    for name in names:
        lines = []
        for row in _both(run, name):
            stated = (
                published.row(run.model, name, alpha=row.alpha, beta=row.beta)
                if row.protocol == "paper"
                else None
            )
            cells = [
                _cell(row.metrics.get(metric), note=_published((stated or {}).get(metric)))
                for metric in metrics
            ]
            # Like a control, such a row was measured on the first prompts only.
            lines.append(
                Line(row.protocol, cells, f"n = {row.n:,}" if row.n < most[row.protocol] else "")
            )
        entries.append(_entry(name, run, lines))
    return Table("results", "intervention", columns, entries)


def control_table(run: Run, metric: str) -> Table | None:
    """Paired changes to the untouched model: the intervention, each control, and whether their
    intervals are apart.
    """
    present = [
        control for control in CONTROLS if any(one.control == control for one in run.results)
    ]
    columns = [Column("intervention")] + [Column(CONTROL_LABELS[control]) for control in present]
    entries = []
    for name in run.names():
        lines = []
        for one in _both(run, name):
            found = run.controls(name, one.protocol)
            ours = one.change.get(metric)
            if found and ours:
                evidence = Evidence(run, one.protocol)
                compared = [
                    _compared(evidence, found[control], metric) if control in found else Cell()
                    for control in present
                ]
                lines.append(
                    Line(
                        one.protocol, [_cell(ours, signed=True, note=f"n = {ours.n:,}"), *compared]
                    )
                )
        if lines:
            entries.append(_entry(name, run, lines))
    return Table(f"controls-{metric}", "intervention", columns, entries) if entries else None


def group_table(run: Run) -> Table | None:
    """Tables 4 and 5: how many neurons each group has, and what they contribute to the change."""
    if not run.tables:
        return None
    known = published.figure(run.model, "groups")
    compared = all(table.compared for table in run.tables.values())
    columns = [Column("neurons"), Column("share of the four")]
    columns += [Column("sum of Δ", "residual units")] if compared else []
    columns += [Column("published share")] if known else []
    entries = {name: Entry(name, GROUP_WORDS.get(name, ""), []) for name in GROUPS}
    if compared:
        entries["increasing"] = Entry("increasing", "Δ > 0: in none of the four groups", [])
    for name, entry in entries.items():
        lines = []
        for protocol, table in run.tables.items():
            mask, total = (
                table.select(name),
                int(sum(group.sum() for group in table.groups().values())),
            )
            share = float(mask.sum()) / total if total and name in GROUPS else None
            cells = [
                Cell(f"{int(mask.sum()):,}"),
                Cell(f"{share:.1%}" if share is not None else ""),
            ]
            cells += (
                [Cell(number(float(table.grid("projection_change")[mask].sum()), signed=True))]
                if compared
                else []
            )
            theirs = known.get(name) if known and protocol == "paper" else None
            cells += [Cell(f"{theirs:.1%}" if theirs is not None else "")] if known else []
            lines.append(Line(protocol, cells))
        entries[name] = Entry(entry.label, entry.note, lines)
    return Table("groups", "group", columns, list(entries.values()))


def probe_table(run: Run) -> Table | None:
    """Table 11: how well the probe tells held-out texts apart."""
    facts = run.stage("probe")
    known = published.figure(run.model, "probe_accuracy")
    columns = [
        Column("accuracy"),
        Column("AUC"),
        Column("texts: fitted"),
        Column("texts: held out"),
    ]
    columns += [Column("published accuracy")] if known else []
    lines = []
    for protocol in run.protocols:
        fact = facts.get(protocol)
        if fact:
            cells = [
                Cell() if fact.get(key) is None else Cell(number(fact[key]))
                for key in ("accuracy", "auc")
            ]
            cells += [
                Cell(f"{fact[key]:,}") if key in fact else Cell() for key in ("train", "validation")
            ]
            cells += [Cell(number(known)) if protocol == "paper" else Cell()] if known else []
            lines.append(Line(protocol, cells))
    return (
        Table("probe", "direction", columns, [Entry("Linear probe", "", lines)]) if lines else None
    )


def judge_table(run: Run) -> Table | None:
    """What each scorer says of the same continuations, and how many of those are degenerate."""
    judges = list(dict.fromkeys(judge for one in run.results for judge in one.judged))
    if len(judges) < 2:
        return None
    columns = [
        Column(judge, "the judge" if place == 0 else "second scorer")
        for place, judge in enumerate(judges)
    ]
    columns.append(Column("degenerate", "share, empty included"))
    entries = []
    for name in run.names():
        lines = [
            Line(
                one.protocol,
                [
                    *(_cell(one.judged.get(judge)) for judge in judges),
                    _cell(one.metrics.get("degenerate")),
                ],
            )
            for one in _both(run, name)
        ]
        entries.append(_entry(name, run, lines))
    return Table("judges", "intervention", columns, entries)


def _both(run: Run, name: str) -> list[Result]:
    found = [run.result(name, protocol) for protocol in run.protocols]
    return [one for one in found if one is not None]


def _entry(name: str, run: Run, lines: Sequence[Line]) -> Entry:
    """A row's lines under its label; what the protocols do not share, such as a steering's α,
    stands with each line.
    """
    rows = {row.protocol: row for row in _both(run, name)}
    stated = {protocol: _stated(row) for protocol, row in rows.items()}
    shared = [
        fact
        for fact in next(iter(stated.values()))
        if all(fact in facts for facts in stated.values())
    ]
    own: dict[str, list[str]] = {
        protocol: [fact for fact in facts if fact not in shared]
        for protocol, facts in stated.items()
    }
    noted = [
        replace(line, note=" · ".join(filter(None, [*own.get(line.protocol, []), line.note])))
        for line in lines
    ]
    return Entry(next(iter(rows.values())).label, " · ".join(shared), noted)


def _stated(row: Result) -> list[str]:
    facts = [f"{row.neurons:,} neurons"] if row.neurons else []
    return facts + [
        f"{symbol} = {value:g}"
        for symbol, value in (("α", row.alpha), ("β", row.beta))
        if value is not None
    ]


def _cell(estimate: Estimate | None, *, signed: bool = False, note: str = "") -> Cell:
    if estimate is None:
        return Cell(note=note)
    return Cell(number(estimate.mean, signed=signed), interval(estimate, signed=signed), note)


def _compared(evidence: Evidence, control: Result, metric: str) -> Cell:
    """A control's change, and where the intervention lies against it by the paired difference on
    the control's prompts.
    """
    change, apart = control.change.get(metric), control.minus_main.get(metric)
    if change is None or apart is None:
        return Cell()
    tone, words = CONTROL_IS[evidence.direction(apart, metric)]
    return Cell(
        number(change.mean, signed=True),
        interval(change, signed=True),
        f"n = {change.n:,} · {words}",
        tone,
    )


CONTROL_IS: dict[Direction, tuple[str, str]] = {
    "more": ("lower", "intervention lower"),
    "less": ("higher", "intervention higher"),
    "not told apart": ("alike", "not distinguishable"),
}


def _published(value: float | None) -> str:
    return f"published {value:g}" if value is not None else ""


def _units(run: Run, metric: str) -> str:
    counts = {
        one.metrics[metric].n
        for one in run.results
        if metric in one.metrics and one.control_of is None
    }
    # The same model has two values of it, as METHOD §5 has two definitions.
    apart = (
        "; paper counts the prompt’s tokens too"
        if metric == "f1" and "paper" in run.protocols
        else ""
    )
    return f"{units(counts)} {UNITS[metric]}{apart}" if counts else ""
