"""A study, or another sequence of stages, run in one folder.

    probe -> base -> pairs -> train -> activations -> neurons -> evaluate -> gains -> step -> front

A finished stage is not repeated, an interrupted training goes on from its checkpoint, and
interrupted sampling and evaluation keep every finished piece.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..errors import DialdownError, enough_memory
from ..files import disk_errors
from ..workers import check_main_guard
from .config import Config
from .context import Stages, Workspace
from .front import draw_front, gains_for_front, step_for_front
from .needs import busy_lines, check_room, way_out
from .outputs import rows_of, so_far
from .preflight import check_inputs, check_settings
from .stages import (
    collect_means,
    evaluate,
    find_directions,
    find_pairs,
    look_at_base,
    make_tables,
    tune,
)
from .standing import pinned

STUDY: Stages = {
    "probe": find_directions,
    "base": look_at_base,
    "pairs": find_pairs,
    "train": tune,
    "activations": collect_means,
    "neurons": make_tables,
    "evaluate": evaluate,
    "gains": gains_for_front,
    "step": step_for_front,
    "front": draw_front,
}

# Seconds of other work for each that showing it takes.
SHOWING = 10


@dataclass
class Study:
    """A study in a folder, or another sequence of stages such as `detox`.

    Attributes:
        config: its settings.
        folder: where everything is written.
        announce: called with a sentence when a stage ends or is found done.
        enter: called with a stage's name when its turn comes, and whether it was done before.
        stages: what is done, in order; by default the study of METHOD §9.
        show: called whenever more can be shown of the folder than before: with True while work goes
            on there, with False when it has ended or was interrupted.
    """

    config: Config
    folder: Path
    announce: Callable[[str], None] = lambda sentence: None
    stages: Stages = field(default_factory=lambda: STUDY)
    enter: Callable[[str, bool], None] = lambda stage, done: None
    show: Callable[[bool], None] = lambda running: None
    _shown_until: float = field(default=0.0, init=False)

    @cached_property
    def work(self) -> Workspace:
        """What the stages share."""
        stages = tuple(self.stages)
        return Workspace(pinned(self.config), self.folder, stages, self._show_more)

    def run(self, *, until: str | None = None) -> None:
        """Run the stages up to `until`, skipping what is done.

        Raises:
            DialdownError: the folder holds a study with other settings, or a stage cannot do its
                work.
        """
        check_settings(self.config)
        check_main_guard()
        ledger, names = self.work.ledger, [*self.stages]
        names = names if until is None else names[: names.index(until) + 1]
        with disk_errors(self.folder):
            new = not (self.folder.is_dir() and any(self.folder.iterdir()))
        if new:
            # What cannot work leaves no folder.
            self._check(names, self.folder)
        with ledger.claim(self.announce):
            if not new:
                self._check([stage for stage in names if not ledger.finished(stage)])
            try:
                for stage in names:
                    self._do(stage)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    self.announce("interrupted: a few seconds to leave everything in order")
                # What went wrong is to be heard, not that it could not be shown either.
                with suppress(DialdownError):
                    self.show(False)
                raise
            self.show(False)

    def _check(self, stages: Sequence[str], new: Path | None = None) -> None:
        """Refuse what cannot work, and say what memory the stages will take."""
        sentence = check_room(self.work.config, stages, new)
        check_inputs(self.work, stages)
        if sentence:
            self.announce(sentence)
            for line in busy_lines():
                self.announce(line)

    def _do(self, stage: str) -> None:
        ledger = self.work.ledger
        if lost := ledger.drop_damaged(stage):
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            again = (
                f"{lost[0]}{more} is gone or was damaged after it was written, and is made again"
            )
            self.work.notes.add(again)
            self.announce(f"{stage}: {again}")
        done = ledger.finished(stage)
        self.enter(stage, done)
        if done:
            self.announce(f"{stage}: done before")
            self._drop_rows_so_far()
            return
        self._show_more()
        start = time.perf_counter()
        with enough_memory(way_out(stage, self.config)), self.work.notes.hearing():
            facts = self.stages[stage](self.work)
        facts |= self.work.notes.take()
        seconds = time.perf_counter() - start
        ledger.record(stage, seconds, facts, self.work.peak_together)
        self._drop_rows_so_far()
        # Of what was not asked for there is nothing to say here; run.json says why it was left out.
        if "skipped" not in facts:
            self.announce(f"{stage}: {seconds:.0f} s")

    def _drop_rows_so_far(self) -> None:
        """Remove what was gathered of rows whose stage is done: `base` repaired in a finished study
        leaves some, and a front that was interrupted and is asked for no more.
        """
        for stage in self.stages:
            for path in (self.folder / so_far(name) for name in rows_of(stage)):
                if path.exists() and self.work.ledger.finished(stage):
                    path.unlink()

    def _show_more(self) -> None:
        """Show what there is, unless that would take a good part of the time."""
        start = time.monotonic()
        if start >= self._shown_until:
            self.show(True)
            self._shown_until = time.monotonic() + SHOWING * (time.monotonic() - start)
