"""What is written about a study in its folder: what each finished stage took, found and left, and
who is at work there.

`stages/NAME.json` is the record of a stage, with the sha256 of every file it left; `run.json` is
made of these records and the settings, for whoever reads the folder, and is made again where it is
lost.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import DialdownError
from ..files import (
    SCHEMA,
    disk_errors,
    fingerprint,
    harmed,
    read_sealed,
    sizes_and_hashes,
    write_sealed,
)
from ..training.settings import TOGETHER
from ..workers import peak_bytes
from .config import Config, differences
from .holding import LOCK, held, sweep
from .outputs import RUN, UNREAD, remove, run_record, written
from .sources import file_states
from .stage import ADDED, ALL, NAMED_SETTINGS, STAGES
from .standing import standing

# Of the section `evaluation`, what only rows are measured on.
EVALUATED = (
    "judge", "metrics", "control_count", "pairs", "pairs_count", "text", "window", "max_windows",
    "kl_windows",
)  # fmt: skip
# The settings that say what rows are measured on, and by whom.
MEASURED_ON = (
    "model", "tuned", "revision", "dtype", "device", "template", "seed", "training_prompts",
    "concept", "probe", "evaluation",
)  # fmt: skip

# By how many processes something is made, and how many prompts each decodes at once; it changes no
# number by more than rounding (a worker has one thread, a process alone has all).
BY_HOW_MANY: Any = {
    "workers": True,
    "evaluation": {"batch_size"},
    **{section: TOGETHER for section in ("dpo", "gains", "rank_one")},
}
RECORDS = "stages"
PACKAGES = ("torch", "transformers", "trl", "scikit-learn", "numpy", "polars", "safetensors")


@dataclass(frozen=True)
class Ledger:
    """What is written about a study in its folder, where its `stages` are done in order.

    Attributes:
        config: its settings.
        folder: where it is written.
        stages: by name.
        known: what the settings stand for, where that is known (see `standing`): a worker may have
            another cache and another device.
    """

    config: Config
    folder: Path
    stages: tuple[str, ...] = STAGES
    known: Mapping[str, Any] | None = None

    @cached_property
    def given(self) -> dict[str, Any]:
        """The settings as JSON, without those that may differ when a study goes on."""
        return self.config.model_dump(mode="json", exclude=BY_HOW_MANY)

    @cached_property
    def standing(self) -> Mapping[str, Any]:
        """What of the settings stands for something else here and now."""
        return standing(self.config) if self.known is None else self.known

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings as far as they must not differ, as what they stand for."""
        return {**self.given, **self.standing}

    @contextmanager
    def claim(self, announce: Callable[[str], None] = lambda sentence: None) -> Iterator[None]:
        """Hold the folder and start its study, or go on with the same settings.

        A folder that was made for nothing is removed again. `announce` is called with a sentence
        where run.json was damaged.
        """
        with disk_errors(self.folder):
            new = not self.folder.exists()
            # Any of them may have been lost since.
            begun = (self.folder / LOCK).exists() or records(self.folder) or run_record(self.folder)
        if not new and not begun and _has_content(self.folder):
            raise DialdownError(f"{self.folder} exists and holds no study: pass another --out.")
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with held(self.folder):
            try:
                self._check_settings()
                sweep(self.folder)
                if (self.folder / RUN).exists() and read_sealed(self.folder / RUN) is None:
                    announce(
                        f"{RUN} was damaged after it was written, and is made again from {RECORDS}"
                    )
                self._summarise()
                yield
            finally:
                if new and not records(self.folder) and not _has_content(self.folder):
                    shutil.rmtree(self.folder)

    def went_on_from(self) -> bool:
        """Whether something is done here, all with these settings, whatever became of its files."""
        configs = self._configs()
        return bool(configs) and all(
            stage in self.stages
            and self._until(before, place := self.stages.index(stage))
            == self._until(self.settings, place)
            for stage, before in configs.items()
        )

    def _configs(self) -> dict[str, dict[str, Any]]:
        """The settings that each finished stage had."""
        configs = {stage: record["config"] for stage, record in records(self.folder).items()}
        if not configs:
            # The records may be lost, or those of an earlier version.
            run = run_record(self.folder) or {"stages": (), "config": {}}
            configs = dict.fromkeys(run["stages"], _stood_for(run))
        return configs

    def _check_settings(self) -> None:
        configs = self._configs()
        done = [stage for stage in configs if stage not in ADDED]
        if other := sorted({*done} - {*self.stages}):
            raise DialdownError(
                f"{self.folder} holds work of another command (its stage {other[0]}): pass another "
                "--out."
            )
        last = max((self.stages.index(stage) for stage in done), default=-1)
        before = configs[self.stages[last]] if done else {}
        if changed := differences(self._until(before, last), self._until(self.settings, last)):
            raise DialdownError(
                f"{self.folder} holds a study with other settings ({'; '.join(changed)}): pass "
                "another --out, or the same settings to go on with it."
            )

    def inputs(self, stage: str) -> str:
        """The hash of what a stage depends on: the settings so far, the files they name, what
        earlier stages left, and the version of the code.
        """
        settings = self._until(self.settings, self.stages.index(stage))
        left = {name: self.outputs(name) for name in ALL[stage].reads if name in self.stages}
        # The judge of the rows of `base` counts for these rows, and not for what is trained next.
        rows = [self.measured_on()] if ALL[stage].measures else []
        return fingerprint(SCHEMA, stage, settings, file_states(settings), __version__, left, *rows)

    def measured_on(self) -> str:
        """The hash of what rows are measured on, whatever was done to the model: prompts, texts,
        judges (one may be the probe), and the version of the code.
        """
        settings = {key: self.settings[key] for key in MEASURED_ON}
        return fingerprint(
            SCHEMA, settings, file_states(settings), __version__, self.outputs("probe")
        )

    def outputs(self, stage: str) -> str | None:
        """The hash of what a finished stage left for others to read."""
        record = read_sealed(_path(self.folder, stage))
        if record is None:
            return None
        return fingerprint(
            {
                place: state["sha256"]
                for place, state in record["files"].items()
                if not UNREAD.search(place)
            }
        )

    def finished(self, stage: str) -> bool:
        """Whether a stage is done, from the same inputs."""
        record = read_sealed(_path(self.folder, stage))
        return record is not None and record["inputs"] == self.inputs(stage)

    def drop_damaged(self, stage: str) -> list[str]:
        """Make a finished stage undone where its files are gone or changed; their names.

        Where its record itself is damaged, nothing vouches for the files it left, so all of them
        are made again.
        """
        path = _path(self.folder, stage)
        record = read_sealed(path)
        if record is not None:
            lost = harmed(self.folder, record["files"]) if self.finished(stage) else []
        elif path.exists():
            lost = [path.relative_to(self.folder).as_posix(), *self._left_by(stage)]
        else:
            lost = []
        if lost:
            with disk_errors(self.folder):
                remove(self.folder, lost, record["files"] if record else ())
                path.unlink(missing_ok=True)
            # Or what shows the folder meanwhile would miss the rows of a stage that is undone.
            self._summarise()
        return lost

    def record(
        self, stage: str, seconds: float, facts: Mapping[str, Any], peak_together: int = 0
    ) -> None:
        """Write that a stage is done: time, peak memory, what it found, the files it left."""
        peak = max(peak_bytes() or 0, peak_together)
        facts = {
            "inputs": self.inputs(stage),
            "seconds": round(seconds, 2),
            "peak_memory_mb": peak >> 20 or None,
            **facts,
        }
        record = {
            "inputs": facts["inputs"],
            "config": self.settings,
            "told": facts,
            "versions": {
                "python": platform.python_version(),
                "dialdown": __version__,
                **{name: _version(name) for name in PACKAGES},
            },
            "machine": {
                "platform": platform.platform(),
                "threads": torch.get_num_threads(),
                **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
            },
            # A stage that had nothing to do left nothing, whatever an earlier one of its name did.
            "files": {}
            if "skipped" in facts
            else sizes_and_hashes(self.folder, self._left_by(stage)),
        }
        write_sealed(_path(self.folder, stage), record)
        self._summarise()

    def _left_by(self, stage: str) -> list[str]:
        """The files of a stage that are there, but for those that another has recorded."""
        others = [record for name, record in records(self.folder).items() if name != stage]
        recorded = {place for record in others for place in record["files"]}
        return [place for place in written(self.folder, stage) if place not in recorded]

    def _summarise(self) -> None:
        """Write run.json, where it is not as the records and the settings say."""
        done = records(self.folder)
        in_order = [
            *(stage for stage in self.stages if stage in done),
            *(done.keys() - {*self.stages}),
        ]
        run = {
            "schema": SCHEMA,
            "config": self.given,
            "standing": self.standing,
            "stages": {stage: done[stage]["told"] for stage in in_order},
            **(
                {name: done[in_order[-1]][name] for name in ("versions", "machine")} if done else {}
            ),
        }
        if read_sealed(self.folder / RUN) != run:
            write_sealed(self.folder / RUN, run)

    def _until(self, settings: Mapping[str, Any], place: int) -> dict[str, Any]:
        """The settings that the stages up to a place read; none where nothing was done yet (-1)."""
        done = [ALL[stage] for stage in self.stages[: place + 1]]
        read = {name for stage in done for name in stage.settings}
        used = {
            key: value
            for key, value in settings.items()
            if done and (key in read or key not in NAMED_SETTINGS)
        }
        if "evaluation" in used and not any(stage.scores for stage in done):
            used["evaluation"] = {
                key: value for key, value in used["evaluation"].items() if key not in EVALUATED
            }
        return used


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """The record of every finished stage in a folder; one that is damaged is none."""
    read = {path.stem: read_sealed(path) for path in sorted((folder / RECORDS).glob("*.json"))}
    return {stage: record for stage, record in read.items() if record is not None}


@contextmanager
def held_whole(folder: Path, again: str) -> Iterator[None]:
    """Hold a folder whose stages' files are all as they left them; `again`, which writes its own
    files anew inside the context, is recorded with them.
    """
    with held(folder):
        done = records(folder)
        files = {
            place: state
            for stage, record in done.items()
            if stage != again
            for place, state in record["files"].items()
        }
        lost, run = harmed(folder, files), read_sealed(folder / RUN)
        if lost or run is None:
            raise DialdownError(
                f"{folder / [*lost, RUN][0]} is gone or was damaged after it was written: repeat "
                "the command that made this folder, which makes it again."
            )
        yield
        if again in done:
            record = done[again]
            record["files"] = sizes_and_hashes(folder, record["files"])
            if record["config"] != _stood_for(run):
                # It tells of a study that went on with other settings, and is none of its stages.
                record["inputs"] = None
            write_sealed(_path(folder, again), record)


def _stood_for(run: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run.json, as what they stood for."""
    return {**run["config"], **run.get("standing", {})}


def _path(folder: Path, stage: str) -> Path:
    return folder / RECORDS / f"{stage}.json"


def _has_content(folder: Path) -> bool:
    """Whether there is more in a folder, or file, than a command that did nothing yet may leave."""
    if not folder.is_dir():
        return True
    begun = {RUN, "report.html"} if run_record(folder) else set()
    names = {path.name for path in folder.iterdir()} - begun
    return not all(name.startswith(".dialdown.") or name.endswith(".partial") for name in names)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
