"""A finished study in the terminal: table 2, and what tuning did to the neurons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from ..data.csv_tables import read_csv
from ..evaluation.bootstrap import Estimate
from ..evaluation.row import METRIC_NAMES
from ..files import read_json
from ..report.findings import findings
from ..report.names import PROMPTED, TITLES
from ..report.run import load
from ..report.tables import all_tables
from ..study.detox_methods import METHODS
from ..study.ladder_text import caveats, shown
from ..study.notes import noted

SAMPLES, TOP = 4, 6
# The tables that `dialdown diff` prints, the columns worth a terminal's width, and how they read.
SHOWN = {
    "section-5-1-shifts": (
        ("protocol", "value_cosine_mean", "value_cosine_min", "shift_mean", "percent"),
        "Cosine of a value vector before to after (1: not turned); mean size of the shift of a "
        "mean activation; by how much of itself it fell, in %, without the outer tenths.",
    ),
    "figure-1-opposing-effects": (
        ("protocol", "down", "up", "net"),
        "What a neuron writes along the direction of the concept, after minus before: summed over "
        "those that write less, those that write more, and all.",
    ),
    "table-5-group-shares": (
        ("protocol", "group", "count", "share"),
        "Of the neurons that write less: T along the direction, A against it; P with a mean "
        "activation above 0 before tuning, N below.",
    ),
    "table-17-correlations": (
        ("protocol", "pair", "r", "p", "n"),
        "Pearson's r over all neurons, and the p of there being none.",
    ),
    "table-18-reducing-share": (("protocol", "neurons", "reducing_share"), ""),
    "appendix-g-sign-conflicts": (
        ("protocol", "quantity", "conflict_share"),
        "Of all neurons, by the sign of what they write along each direction.",
    ),
}


def show_sentences(folder: Path, out: Console) -> None:
    """Print the page's first sentences."""
    for text in findings(load(folder)).values():
        out.print(text, highlight=False)
    _say_if_equal(folder, out)


def show_next(folder: Path, out: Console) -> None:
    """Print where the page is, and what to do with what was found."""
    model = read_json(folder / "run.json")["config"]["model"]
    out.print(f"\nThe page: {(folder / 'report.html').absolute().as_uri()}", soft_wrap=True)
    out.print("Next:")
    for command, what in (
        (f"dialdown app {folder}", "play with the edits, look through the neurons"),
        (f"dialdown detox {model} --out calm", "one gain per neuron, in a plain checkpoint"),
    ):
        out.print(f"  {command}   # {what}", soft_wrap=True, highlight=False)


def show_notes(folder: Path, out: Console) -> None:
    """Print what the stages replaced, left out, cut or did not reach."""
    # Stages that use the same prompts cut them alike, which is said once.
    stages: dict[str, str] = {}
    for stage, sentence in noted(read_json(folder / "run.json")):
        stages.setdefault(sentence, stage)
    if stages:
        out.print("Replaced, left out, cut or not reached:", style="bold")
    for sentence, stage in stages.items():
        out.print(f"  {stage}: {sentence}", highlight=False, soft_wrap=True)


CHECKED = {"none": "untouched", "detox": "edited", "detox__random_neurons": "the same, shuffled"}


def show_check(folder: Path, out: Console) -> None:
    """Print what `dialdown detox` measured: before, after, the random control, and continuations
    side by side.
    """
    run = read_json(folder / "run.json")
    concept, stages = run["config"]["concept"], run["stages"]
    rows = read_json(folder / "results.json")["rows"]
    # Three models beside each other fit 80 columns; six metrics do not.
    table = _table("", *(CHECKED[row["intervention"]] for row in rows), pad_edge=False)
    for metric, title in {"toxicity": concept, **METRIC_NAMES}.items():
        if rows[0].get(metric) is not None:
            table.add_row(title, *(_interval(row[metric]) for row in rows))
    out.print(table)
    out.print(
        f"Held-out prompts, {PROMPTED[stages['check']['template']]}; means with bootstrap 95 % "
        "intervals; the control has the same numbers, shuffled within each layer."
    )
    trained = METHODS[run["config"]["detox"]["method"]].trained
    out.print(_dialled(stages["dial"], "trained" if trained else "found"))
    samples = Table(box=None, header_style="bold", padding=(0, 1))
    for column in ("prompt", "untouched", "edited"):
        samples.add_column(column, ratio=1)
    before, after = rows[0]["samples"], rows[1]["samples"]
    for untouched, edited in zip(before[:SAMPLES], after[:SAMPLES], strict=True):
        texts = (untouched["prompt"], untouched["continuation"], edited["continuation"])
        # Three texts share a line, so their own line ends would leave holes.
        samples.add_row(*(" ".join(text.split()) for text in texts))
    out.print(samples)
    _show_moved(folder, run["config"]["detox"]["method"], out)


def _show_moved(folder: Path, method: str, out: Console) -> None:
    """Print what of the model an edit moves most, and the tokens that are written there."""
    if METHODS[method].site:
        title, stem = (
            "\nThe layers where it writes most, and the tokens it writes",
            "rank-one-layers",
        )
        columns = {"layer": "layer", "norm": "norm", "cosine": "cosine to the probe"}
        top = read_csv(folder / "tables" / f"{stem}.csv").sort("norm", descending=True)
    else:
        title, stem = "\nThe neurons it moves most, and the tokens they write", "gains-top-neurons"
        columns = {"layer": "layer", "neuron": "neuron", "gain": "gain"}
        top = read_csv(folder / "tables" / f"{stem}.csv")
    out.print(f"{title}: what the model will say less or more of.", style="bold")
    table = _table(*columns.values(), "writes")
    for *numbers, writes in top.head(TOP).select(*columns, "writes").iter_rows():
        table.add_row(*map(_cell, numbers), writes)
    out.print(table)


# The columns of a ladder that are shown from so many characters on.
FURTHER = ("strength", "degenerate", "refusals", "names groups", "data", "seconds", "folds")
WIDE = 120


def show_ladder(folder: Path, out: Console) -> None:
    """Print the table of `dialdown ladder`, and how it is to be read."""
    ladder = read_json(folder / "ladder.json")
    head, *lines = shown(ladder["rows"], read_json(folder / "run.json")["config"]["concept"])
    # What a narrow terminal has no room for is in ladder.md.
    wide = out.width >= WIDE
    places = [place for place, name in enumerate(head) if wide or name not in FURTHER]
    table = _table(*(head[place] for place in places))
    for row, line in zip(ladder["rows"], lines, strict=True):
        if not wide:
            # The columns that tell which methods are not at the price are those left out.
            paid = head.index("KL")
            line[paid] = ", ".join([line[paid], *caveats(row)])
        table.add_row(*(line[place] for place in places))
    out.print(table)
    out.print(
        f"{ladder['prompts']:,} prompts that no method has seen, {PROMPTED[ladder['template']]}; "
        f"each method dialled to a KL of {ladder['kl']:g}, the mean over {len(ladder['texts'])} "
        f"kinds of text ({', '.join(ladder['texts'])}), whose change of log-perplexity is beside "
        "it. Means with bootstrap 95 % intervals; differences are paired over prompts, to the "
        "least toxic method that reaches the price, by the first judge. NAME__random_neurons is "
        "a control: the numbers of NAME, shuffled within each layer.",
        highlight=False,
    )
    if ladder["caveat"]:
        out.print(ladder["caveat"], highlight=False)


def _dialled(dial: dict[str, Any], origin: str) -> str:
    text = f"The edit is {dial['strength']:.3g} times what was {origin}"
    if "kl" in dial:
        kinds = ", ".join(f"{name} {kl:.3f}" for name, kl in dial["kl_by_text"].items())
        text += (
            f", which costs a KL of {dial['kl']:.3f} and {dial['log_ppl']:+.3f} log-perplexity on "
            f"the text it was dialled on (KL by kind: {kinds})"
        )
    return f"{text}."


def show_neurons(folder: Path, out: Console) -> None:
    """Print what tuning did to the neurons: how far they moved, in which direction, and what that
    went along with.
    """
    frames = all_tables(load(folder))
    for stem, (columns, reading) in SHOWN.items():
        # A run without several directions has no conflicts of sign, for example.
        if (frame := frames.get(stem)) is None:
            continue
        if "layer" in frame.columns:
            # By layer it is in the file; here over all of them.
            frame = frame.filter(pl.col("layer").is_null())
        if "tuning_free" in frame.columns:
            frame = frame.filter(~pl.col("tuning_free") & (pl.col("group") != "sum"))
        table = _table(*(name.replace("_", " ") for name in columns))
        for values in frame.select(columns).iter_rows():
            table.add_row(*map(_cell, values))
        out.print(f"\n{TITLES[stem]}", style="bold")
        out.print(table)
        if reading:
            out.print(reading, style="dim")
    out.print("\nBy layer, and all other tables: on the page.\n")
    _say_if_equal(folder, out)


def _say_if_equal(folder: Path, out: Console) -> None:
    """Say where the tuned model of a study is its base model."""
    if sentence := read_json(folder / "run.json")["stages"].get("neurons", {}).get("equal"):
        out.print(sentence, style="bold red")


def _table(*columns: str, pad_edge: bool = True) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1), pad_edge=pad_edge)
    for place, column in enumerate(columns):
        table.add_column(column, no_wrap=place == 0)
    return table


def _interval(value: dict[str, Any] | None) -> str:
    return "" if value is None else f"{Estimate.of(value):.3f}"


def _cell(value: object) -> str:
    if isinstance(value, float):
        # Value vectors turn so little that four digits would round to 1.
        return f"{value:.7f}" if 0.999 < value < 1 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
