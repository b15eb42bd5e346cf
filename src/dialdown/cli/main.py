"""The commands: `dialdown run` and its stages, `detox` and what is done with its result, and
`doctor`.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typer.core import TyperCommand

from ..errors import DialdownError, enough_memory
from ..terminal import Terminal, take_any_text

if TYPE_CHECKING:
    from ..exporting.export import Exported
    from ..interventions.intervention import Intervention
    from ..models.lm import LM
    from ..study.config import Config

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)
out = Terminal()
err = Terminal(stderr=True)

ConfigFile = Annotated[
    Path | None, typer.Argument(help="A TOML file; without one, the preset alone.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="The folder of the study (runs/PRESET by default); the same command goes on with it.",
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
Seed = Annotated[int | None, typer.Option(help="The seed of everything random.")]
Set = Annotated[
    list[str],
    typer.Option("--set", help="Any other setting, as key=value: --set dpo.learning_rate=2e-5."),
]


NOT_LESS = 3
"""The exit status of a `detox` whose export is whole and whose check does not say that it did what it is for."""


class Display:
    """Progress of a study in the terminal: a live bar, or a line now and then where the output is
    no terminal.
    """

    def __init__(self) -> None:
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=out,
            transient=True,
        )
        self.task = self.bar.add_task("", total=None)
        self.label = ""
        self.before = 0
        self.started = self.spoke = time.monotonic()

    def announce(self, sentence: str) -> None:
        """A stage began or ended."""
        self.label = ""
        self.bar.console.print(sentence, markup=False)

    def progress(self, label: str, done: int, total: int) -> None:
        """Some units of the current work are done."""
        work = label.split(maxsplit=1)[0].rstrip(",")
        now = time.monotonic()
        if work != self.label:
            self.label, self.started, self.before = work, now, done
            self.bar.reset(self.task)
        self.bar.update(self.task, description=label, completed=done, total=total)
        if not out.is_terminal and (done == total or now - self.spoke > 15):
            self.spoke = now
            # What an earlier run had done says nothing about the pace of this one.
            here = done - self.before
            left = (now - self.started) / here * (total - done) if here else float("nan")
            out.print(
                f"  {label}: {done} of {total}"
                + (f", about {left:.0f} s left" if left > 0 else ""),
                highlight=False,
                markup=False,
            )


def _study(stage: str) -> Callable[..., None]:
    def command(
        config: ConfigFile = None,
        out_folder: Out = None,
        preset: Preset = "demo",
        model: Model = None,
        tuned: Tuned = None,
        seed: Seed = None,
        set_: Set = [],  # noqa: B006  (typer reads the default and never changes it)
    ) -> None:
        named = {"model": model, "tuned": tuned, "seed": seed}
        settings = _settings(preset, config, named, set_)
        run_study(settings, out_folder or Path("runs") / preset, until=stage)

    return command


def _settings(
    preset: str, file: Path | None, named: dict[str, Any], assignments: list[str]
) -> Config:
    """The settings of a command: its preset, its file, its own flags, then what `--set` says."""
    # What a command imports takes seconds, which `--help` should not.
    from ..study.config import load_config
    from ..study.sources import parse_assignments

    flags = {key: value for key, value in named.items() if value is not None}
    return load_config(preset=preset, file=file, flags={**flags, **parse_assignments(assignments)})


def run_study(settings: Config, folder: Path, *, until: str) -> None:
    """Run a study in the terminal, up to a stage."""
    from ..report.stage import RUN
    from ..study.run import Study
    from ..workers import quiet_libraries

    quiet_libraries()
    display = Display()
    start = time.monotonic()
    with display.bar, _interruptible():
        Study(settings, folder, display.progress, display.announce, RUN).run(until=until)
    out.print(
        f"Finished {until} in {time.monotonic() - start:.0f} s; everything is in {folder}.",
        markup=False,
    )
    from .summary import show_notes, show_rows, show_verdicts

    if until == "report":
        show_rows(folder, out)
        show_verdicts(folder, out)
    show_notes(folder, out)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C, and being asked to end, say that nothing is lost."""
    asked: list[int] = []

    def end(number: int, frame: object) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        err.print("Interrupted: what is done stays done, and the same command goes on from there.")
        sys.exit(128 + (asked or [signal.SIGINT])[0])
    finally:
        signal.signal(signal.SIGTERM, before)


STAGE_HELP = {
    "run": (
        "report",
        "The whole study: probe, pairs, DPO, activations, neuron table, interventions, report.",
    ),
    "probe": (
        "probe",
        "Find the directions: a linear probe (both protocols), a token contrast, a random one.",
    ),
    "pairs": ("pairs", "Make preference pairs with the model itself, after the stages before."),
    "train": ("train", "Tune the model with DPO and the KL term, after the stages before."),
    "activations": (
        "activations",
        "Mean activations of base and tuned model, after the stages before.",
    ),
    "neurons": ("neurons", "The neuron table and its groups, after the stages before."),
    "front": (
        "front",
        "Every family of interventions at several strengths (front.count prompts), after the "
        "stages before.",
    ),
    "evaluate": (
        "evaluate",
        "Every intervention and control under both protocols, after the stages before.",
    ),
}
for _name, (_stage, _help) in STAGE_HELP.items():
    app.command(_name, help=_help)(_study(_stage))


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
            help=(
                "The folder of the study (runs/diff-TUNED by default); the same command goes "
                "on there."
            ),
        ),
    ] = None,
    seed: Seed = None,
    set_: Set = [],  # noqa: B006  (typer reads the default and never changes it)
) -> None:
    """What tuning did: weights, activations, groups, correlations, and which neurons matter when
    they are patched.
    """
    settings = _settings("diff", None, {"model": base, "tuned": tuned, "seed": seed}, set_)
    folder = out_folder or Path("runs") / f"diff-{Path(tuned).name}"
    run_study(settings, folder, until="report")
    from .summary import show_neurons

    show_neurons(folder, out)


OutFolder = Annotated[
    Path, typer.Option("--out", help="The folder to write; it appears whole or not at all.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")]
Verify = Annotated[
    Literal["transformers", "vllm", "no"],
    typer.Option(
        help=(
            "Reload the folder and compare it with the hooked base model, in transformers or in "
            "vLLM too; --no-verify leaves it out."
        )
    ),
]
# As `dialdown.export` takes it.
VERIFY: Mapping[str, Any] = {"transformers": True, "vllm": "vllm", "no": False}


class Verifying(TyperCommand):
    """A command with `--verify [WORD]` and `--no-verify`; typer's own options need a word or have
    none.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = []
        for word, following in zip(args, [*args[1:], ""], strict=True):
            if word == "--no-verify":
                words.append("--verify=no")
            elif word == "--verify" and following not in VERIFY:
                words.append("--verify=transformers")
            else:
                words.append(word)
        return super().parse_args(ctx, words)


Base = Annotated[
    str | None, typer.Option(help="Where the base model is, if not where the edit says.")
]
EditFolder = Annotated[
    Path, typer.Argument(help="An exported folder, or one with edit.safetensors and edit.json.")
]
Strength = Annotated[
    float,
    typer.Option(help="How far to dial: 0 is the base model, 1 the edit as the folder holds it."),
]


@app.command(cls=Verifying)
def detox(
    model: Annotated[str, typer.Argument(help="A hub id, a folder, or embedded:smollm2-135m.")],
    out_folder: OutFolder,
    strength: Annotated[
        float | None,
        typer.Option(help="How far to dial; 1 is the edit as it was trained or found."),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(
            help=(
                "Instead: the KL to the base it may cost on neutral text, nats per token; 0.04 "
                "(detox.usual_kl) where no dial is given."
            )
        ),
    ] = None,
    max_ppl_increase: Annotated[
        float | None,
        typer.Option(help="Instead: the share by which perplexity on it may rise; 0.05 is 5 %."),
    ] = None,
    training: Annotated[
        bool,
        typer.Option(
            help="Train the gains, or take one step of the natural gradient, in a minute or two."
        ),
    ] = True,
    preset: Annotated[
        str, typer.Option(help="detox, or smoke to see that it all works.")
    ] = "detox",
    config: Annotated[
        Path | None, typer.Option("--config", help="A TOML file of further settings.")
    ] = None,
    seed: Seed = None,
    force: Force = False,
    verify: Verify = "transformers",
    set_: Set = [],  # noqa: B006  (typer reads the default and never changes it)
) -> None:
    """One number per neuron that makes a model less toxic: found, checked on held-out prompts,
    folded into a checkpoint.

    Exit status: 0 where the check says that it is less toxic; 3 where the check cannot say so, or
    says the opposite (the folder is written all the same); 1 where nothing was written; 130 on
    Ctrl-C.
    """
    named = {
        "model": model,
        "seed": seed,
        "detox.strength": strength,
        "detox.max_kl": max_kl,
        "detox.max_ppl_increase": max_ppl_increase,
    }
    settings = _settings(preset, config, named, set_)
    from ..exporting.export import check_export, export, exported_before
    from ..study.detox import check_dials, find_edit, finished_edit, notes, outcome
    from ..workers import quiet_libraries
    from .summary import show_check, show_notes

    quiet_libraries()
    out_folder = out_folder.absolute()
    check_dials(settings)
    work = out_folder.with_name(f"{out_folder.name}-work")
    display = Display()
    source: dict[str, Any] = {
        "revision": settings.revision,
        "verify": VERIFY[verify],
        "progress": display.progress,
    }
    with display.bar, _interruptible():
        edit = None if force else finished_edit(settings, work, training=training)
        # Killed in its last lines, the same command finds its own export whole.
        done = None if edit is None else exported_before(settings.model, edit, out_folder, **source)
        if done is None:
            check_export(settings.model, out_folder, force=force, **source)
            edit = find_edit(
                settings,
                work,
                training=training,
                progress=display.progress,
                announce=display.announce,
            )
            done = export(
                settings.model, edit, out_folder, force=force, notes=notes(work), **source
            )
    result = outcome(work)
    out.print(
        result.sentence, style="bold" if result.less else "bold red", markup=False, highlight=False
    )
    show_check(work, out)
    show_notes(work, out)
    _say_left_out(done)
    found = done.verification or "not verified"
    out.print(
        f"{out_folder} is an ordinary checkpoint ({found}); the work is in {work}.",
        soft_wrap=True,
        markup=False,
    )
    if not result.less:
        err.print(
            result.sentence,
            "The folder is written; exit status 3 says so.",
            style="red",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(NOT_LESS)


@app.command("apply", cls=Verifying)
def apply_edit(
    folder: EditFolder,
    out_folder: OutFolder,
    base: Base = None,
    strength: Strength = 1.0,
    force: Force = False,
    verify: Verify = "transformers",
) -> None:
    """Put an edit on its base model again, at any strength, as a checkpoint."""
    from ..exporting.export import apply_delta
    from ..workers import quiet_libraries

    quiet_libraries()
    display = Display()
    with display.bar:
        done = apply_delta(
            folder,
            out_folder,
            base=base,
            strength=strength,
            force=force,
            verify=VERIFY[verify],
            progress=display.progress,
        )
    _say_left_out(done)
    out.print(
        f"Wrote {out_folder} ({done.verification or 'not verified'}).", soft_wrap=True, markup=False
    )


def _say_left_out(done: Exported) -> None:
    """Name what of the base's folder is not in an export."""
    if done.left_out:
        out.print(
            f"Not copied from the base's folder: {', '.join(done.left_out)}.",
            soft_wrap=True,
            markup=False,
        )


@app.command()
def chat(
    folder: EditFolder,
    base: Base = None,
    strength: Strength = 1.0,
    tokens: Annotated[int, typer.Option(help="The longest reply, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The seed of the sampling.")] = 0,
) -> None:
    """Talk to the base and the edited model side by side; /strength moves the dial between
    turns.
    """
    from ..workers import quiet_libraries
    from .chat import ChatSettings
    from .chat import chat as talk

    settings = ChatSettings(strength, tokens, temperature, seed)
    quiet_libraries()
    lm, edit = _base_and_edit(folder, base)
    talk(lm, edit, settings=settings, console=out)


@app.command("control-vector")
def control_vector(
    folder: EditFolder,
    out_file: Annotated[Path, typer.Option("--out", help="The GGUF file to write.")],
    base: Base = None,
    strength: Strength = 1.0,
    skip_first_layer: Annotated[
        bool, typer.Option(help="Leave out layer 0, which llama.cpp has no place for.")
    ] = False,
) -> None:
    """Write a shift or a steering (a folder of dd.save_delta or dd.export) as a control vector for
    llama.cpp.
    """
    from ..exporting.control_vector import write_control_vector
    from ..workers import quiet_libraries

    quiet_libraries()
    lm, edit = _base_and_edit(folder, base)
    path = write_control_vector(lm, edit.at(strength), out_file, skip_first_layer=skip_first_layer)
    out.print(
        f"Wrote {path}: llama-server -m BASE.gguf --control-vector {path}",
        soft_wrap=True,
        markup=False,
    )


def _base_and_edit(folder: Path, base: str | None) -> tuple[LM, Intervention]:
    from ..exporting.delta import base_of, load_delta
    from ..models.lm import load

    delta = load_delta(folder)
    found = base_of(delta, base)
    return load(base or delta.base, revision=found.revision), delta.edit


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of an evaluated study.")],
) -> None:
    """Write report.html again from what a study saved."""
    from ..report.stage import report_again

    out.print(f"Wrote {report_again(folder)}", soft_wrap=True, markup=False)


@app.command()
def fetch() -> None:
    """Download and prepare everything the demo needs, so that it runs without a network
    afterwards.
    """
    from ..workers import quiet_libraries
    from .fetching import fetch_all

    quiet_libraries()
    display = Display()
    with display.bar:
        fetch_all(display.progress)
    out.print("Everything the demo needs is there.")


@app.command()
def doctor() -> None:
    """What this machine has: versions, devices, cache, and whether the extras are installed."""
    from .machine import findings

    for line in findings():
        out.print(line, highlight=False, soft_wrap=True, markup=False)


def main() -> None:
    """The entry point: a user's mistake is one sentence on standard error and exit status 1; Ctrl-C
    is 130.
    """
    take_any_text()
    try:
        with enough_memory("use a smaller model or a machine with more memory"):
            app()
    except DialdownError as error:
        # What was given is quoted, and may have had several lines.
        err.print(
            "dialdown:",
            " ".join(str(error).split()),
            style="red",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        sys.exit(1)
