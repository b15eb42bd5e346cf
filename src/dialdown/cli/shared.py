"""What the commands share: the app, its two streams, progress in the terminal, and settings."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from ..progress import progress_to
from ..study.stage import ALL, WHOLE
from ..terminal import Terminal

if TYPE_CHECKING:
    from ..study.config import Config

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Dial a concept down, neuron by neuron.",
)
out = Terminal()
err = Terminal(stderr=True)

# Seconds between two lines where the output is not a terminal, and before a pace is believed.
EVERY = 15
# Work of which an earlier run may have done a part.
RESUMED = ("evaluating", "making", "training")

Model = Annotated[str, typer.Argument(help="A hub id, a folder, or embedded:smollm2-135m.")]
Preset = Annotated[str, typer.Option(help="detox, or smoke to check that everything works.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="A TOML file of further settings.")
]
Seed = Annotated[int | None, typer.Option(help="The seed of everything random.")]
Device = Annotated[str | None, typer.Option(help="A torch device; the GPU if there is one.")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; float32 on a CPU by default.")
]
Judge = Annotated[
    str | None,
    typer.Option(
        help="What scores continuations: a classifier on the hub or in a folder, or module:name."
    ),
]
Set = Annotated[
    list[str],
    typer.Option("--set", help="Any other setting, as key=value: --set dpo.learning_rate=2e-5."),
]


def _show_version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(f"dialdown {version('dialdown')}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    pass


class _LeftColumn(TimeElapsedColumn):
    """What is left, or what has passed as long as that can't be told."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["left"]) if task.fields["left"] else super().render(task)


class Display:
    """One bar for a whole command, or a line now and then where the output is not a terminal; as a
    context it shows all progress.

    Attributes:
        tokens: what each stage puts through the model, by which the bar moves and what is left is
            told; without it the bar is of the stage alone.
    """

    def __init__(self, tokens: Mapping[str, float] | None = None) -> None:
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            _LeftColumn(Column(no_wrap=True)),
            console=out,
            transient=True,
        )
        self._shown = ExitStack()
        self.task = self.bar.add_task("", total=None, left="")
        self.tokens = dict(tokens or {})
        self.whole = sum(self.tokens.values())
        self.stage = self.work = ""
        self.passed = self.share = 0.0
        # What was done before this command says nothing about its pace.
        self.before = 0.0
        self.started = self.spoke = time.monotonic()

    def __enter__(self) -> Self:
        self._shown.enter_context(progress_to(self.progress))
        self._shown.enter_context(self.bar)
        return self

    def __exit__(self, *error: object) -> None:
        self._shown.close()

    def announce(self, sentence: str) -> None:
        """Something worth a line of its own happened."""
        self.bar.console.print(sentence, highlight=False, soft_wrap=True)

    def enter(self, stage: str, done: bool) -> None:
        """A stage begins, or was done before."""
        self.passed += self.tokens.get(self.stage, 0.0)
        self.stage, self.work, self.share = stage, "", 0.0
        if done:
            self.before += self.tokens.get(stage, 0.0)

    def progress(self, label: str, done: int, total: int) -> None:
        """Some units of the current work are done."""
        work, now = label.split(maxsplit=1)[0].rstrip(","), time.monotonic()
        share = done / max(total, 1)
        bar = ALL[self.stage].bar if self.stage else {}
        begin, length = (bar or {work: WHOLE}).get(work, (0.0, 0.0))
        if work != self.work:
            self.work = work
            if not self.whole:
                self.started, self.before = now, share
            elif work in RESUMED:
                self.before += self.tokens.get(self.stage, 0.0) * share * length
        # The bar of a whole run never goes back.
        self.share = max(self.share, begin + share * length) if self.whole else share
        what = f"{label}: {done:,} of {total:,}"
        where = f"{self.stage}: {what}" if self.stage else what
        time_left = self._left(now)
        position, whole = self._position(), self.whole or 1.0
        self.bar.update(
            self.task, description=where, completed=position, total=whole, left=time_left
        )
        if not out.is_terminal and (done == total or now - self.spoke > EVERY):
            self.spoke = now
            line = f"  {where}" + (f"; {time_left}" if time_left else "")
            out.print(line, highlight=False, soft_wrap=True)

    def _position(self) -> float:
        if not self.whole:
            return self.share
        return self.passed + self.tokens.get(self.stage, 0.0) * self.share

    def _left(self, now: float) -> str:
        """What is left of the whole, or of the work alone, once enough is done to tell."""
        whole, position = self.whole or 1.0, self._position()
        here = position - self.before
        if now - self.started < EVERY or here < 0.02 * whole:
            return ""
        seconds = (now - self.started) / here * (whole - position)
        time_left = f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
        return f"about {time_left} left"


def settings_of(
    preset: str, file: Path | None, named: dict[str, Any], assignments: list[str]
) -> Config:
    """The settings of a command: its preset, its file, its own flags, then what `--set` says."""
    # What a command imports takes seconds, which `--help` should not.
    from ..study.config import load_config
    from ..study.sources import parse_assignments

    flags = {key: value for key, value in named.items() if value is not None}
    return load_config(preset=preset, file=file, flags={**flags, **parse_assignments(assignments)})


@contextmanager
def interruptible(folder: Path) -> Iterator[None]:
    """Ctrl-C, and being asked to end, say what is kept: what is finished in a folder."""
    signals: list[int] = []

    def end(number: int, frame: object) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        kept = folder.is_dir() and any(folder.iterdir())
        err.print(
            f"Interrupted: what is finished is in {folder}; rerun the same command to resume."
            if kept
            else "Interrupted: nothing was finished yet, so nothing is kept.",
            soft_wrap=True,
        )
        sys.exit(128 + (signals or [signal.SIGINT])[0])
    finally:
        signal.signal(signal.SIGTERM, before)
