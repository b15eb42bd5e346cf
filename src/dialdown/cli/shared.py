"""What the commands share: the app, its two streams, progress in the terminal, and settings."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..terminal import Terminal

if TYPE_CHECKING:
    from ..study.config import Config

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Dial a concept down, neuron by neuron.",
)
out = Terminal()
err = Terminal(stderr=True)

Seed = Annotated[int | None, typer.Option(help="The seed of everything random.")]
Set = Annotated[
    list[str],
    typer.Option("--set", help="Any other setting, as key=value: --set dpo.learning_rate=2e-5."),
]


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
def interruptible() -> Iterator[None]:
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
