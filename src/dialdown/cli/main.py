"""The commands of a study: `run`, `diff` and `report`; and `fetch`, `doctor` and `config`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import typer

from ..data.local_paths import RUNS
from ..errors import DialdownError, enough_memory
from ..extras import asking_for
from ..study.stage import StudyStage
from ..terminal import take_any_text
from .shared import (
    Device,
    Display,
    Dtype,
    Judge,
    Seed,
    Set,
    app,
    err,
    interruptible,
    out,
    settings_of,
)

if TYPE_CHECKING:
    from ..study.config import Config

ConfigFile = Annotated[
    Path | None, typer.Argument(help="A TOML file; without one, the preset alone.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="The folder of the study (runs/PRESET by default); rerun the command to resume.",
    ),
]
Preset = Annotated[
    str,
    typer.Option(
        help="demo, smoke (the same stages on almost nothing), or full (the paper's sizes)."
    ),
]
Model = Annotated[str | None, typer.Option(help="A hub id, a folder, or embedded:smollm2-135m.")]
Tuned = Annotated[
    str | None, typer.Option(help="A model already tuned from it, instead of training one.")
]


Until = Annotated[
    StudyStage,
    typer.Option(
        help=(
            "Stop after this stage: directions, the base model's rows, preference pairs, DPO, mean "
            "activations, the neuron table, all rows, gains, gains without training, the trade-off "
            "at several strengths, the page."
        )
    ),
]


@app.command()
def run(
    config: ConfigFile = None,
    out_folder: Out = None,
    until: Until = "report",
    preset: Preset = "demo",
    model: Model = None,
    tuned: Tuned = None,
    seed: Seed = None,
    device: Device = None,
    dtype: Dtype = None,
    judge: Judge = None,
    set_: Set = [],  # noqa: B006  (typer reads the default and never changes it)
) -> None:
    """Run the whole study: probe, pairs, DPO, activations, neuron table, interventions, report."""
    named = {"model": model, "tuned": tuned, "seed": seed}
    named |= {"device": device, "dtype": dtype, "evaluation.judge": judge}
    settings = settings_of(preset, config, named, set_)
    run_study(settings, out_folder or Path(RUNS) / preset, until=until)


def run_study(
    settings: Config,
    folder: Path,
    *,
    until: str,
    before: Mapping[str, Callable[[], None]] = MappingProxyType({}),
) -> None:
    """Run a study up to a stage; `before` says what else is done as a stage begins."""
    from ..report.stage import RUN, show
    from ..study.needs import tokens_by_stage
    from ..study.run import Study
    from ..workers import quiet_libraries
    from .summary import show_next, show_notes, show_sentences

    quiet_libraries()
    stages = [*RUN][: [*RUN].index(until) + 1]
    tokens = {stage: count for stage, count in tokens_by_stage(settings).items() if stage in stages}
    display = Display(tokens)
    start = time.monotonic()
    page = (folder / "report.html").absolute().as_uri()

    def enter(stage: str, done: bool) -> None:
        # By then nothing was refused.
        if until == "report" and stage == stages[0]:
            display.announce(f"The page, which fills while this runs: {page}")
        display.enter(stage, done)
        if stage in before:
            before[stage]()

    study = Study(settings, folder, display.announce, RUN, enter, partial(show, folder))
    with display, interruptible(folder):
        study.run(until=until)
    show_notes(folder, out)
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    out.print(
        f"Finished {until} in {minutes} min {seconds} s; everything is in {folder}.", soft_wrap=True
    )
    if until == "report":
        show_sentences(folder, out)
        show_next(folder, out)


@app.command()
def diff(
    base: Annotated[
        str, typer.Argument(help="The model before tuning: a hub id, a folder, or embedded:NAME.")
    ],
    tuned: Annotated[
        str, typer.Argument(help="The tuned model, or a LoRA adapter of the base model.")
    ],
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The folder of the study (runs/diff-TUNED by default); rerun it to resume.",
        ),
    ] = None,
    seed: Seed = None,
    device: Device = None,
    dtype: Dtype = None,
    judge: Judge = None,
    set_: Set = [],  # noqa: B006  (typer reads the default and never changes it)
) -> None:
    """Compare a model before and after tuning: weights, activations, groups, correlations, and
    which neurons matter when they are patched.
    """
    named = {"model": base, "tuned": tuned, "seed": seed}
    named |= {"device": device, "dtype": dtype, "evaluation.judge": judge}
    settings = settings_of("diff", None, named, set_)
    folder = out_folder or Path(RUNS) / f"diff-{Path(tuned).name}"
    from .summary import show_neurons

    # Interventions take most of the time, and what tuning did is known before.
    shown = {"evaluate": partial(show_neurons, folder, out)}
    run_study(settings, folder, until="report", before=shown)


# Here, so that `--help` lists its commands after those of a study.
from . import edits, join, ladder, serve  # noqa: E402, F401


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of an evaluated study.")],
) -> None:
    """Write report.html again from what a study saved."""
    from ..report.stage import report_again

    out.print(f"Wrote {report_again(folder)}", soft_wrap=True)


@app.command()
def fetch() -> None:
    """Download and prepare everything the demo needs, so that it runs without a network
    afterwards.
    """
    from ..workers import quiet_libraries
    from .machine import fetch_all

    quiet_libraries()
    with Display():
        fetch_all()
    out.print("Everything the demo needs is there.")


@app.command()
def doctor(
    model: Annotated[
        str | None, typer.Argument(help="A model: what each stage of a study of it will take here.")
    ] = None,
    preset: Preset = "demo",
    device: Device = None,
    dtype: Dtype = None,
    set_: Set = [],  # noqa: B006  (typer reads the default and never changes it)
) -> None:
    """What this machine has; with a model, the memory, disk and time that each stage will take
    here.
    """
    from .machine import findings, needed

    if model is None:
        lines = findings()
    else:
        from ..study.detox import detox_stages
        from ..study.stage import STAGES

        named = {"model": model, "device": device, "dtype": dtype}
        settings = settings_of(preset, None, named, set_)
        stages = [*detox_stages(settings.detox.method)] if preset == "detox" else STAGES
        lines = needed(settings, Path(RUNS) / preset, stages)
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True)


@app.command()
def config(
    key: Annotated[
        str | None, typer.Argument(help="A setting such as dpo.beta, or a section such as dpo.")
    ] = None,
    preset: Preset = "demo",
    file: Annotated[
        Path | None, typer.Option("--config", help="A TOML file over the preset.")
    ] = None,
    set_: Set = [],  # noqa: B006  (typer reads the default and never changes it)
) -> None:
    """Every setting with what it is, as a TOML file that `dialdown run FILE` takes."""
    settings = settings_of(preset, file, {}, set_)
    from ..study.describe import as_toml, chosen, listed

    typer.echo(as_toml(chosen(settings, key) if key else [*listed(settings)]).rstrip())


def main() -> None:
    """The entry point: a user's mistake is one sentence and exit status 1; Ctrl-C is 130."""
    take_any_text()
    try:
        with enough_memory("use a smaller model or a machine with more memory"), asking_for():
            app()
    except DialdownError as error:
        # What was given is quoted, and may have had several lines.
        err.print(
            "dialdown:", " ".join(str(error).split()), style="red", highlight=False, soft_wrap=True
        )
        sys.exit(1)
