"""What the app was opened on: the folder of a study, a folder with an edit, or a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..data.local_paths import RUNS
from ..errors import DialdownError
from ..study.outputs import RUN, run_record

if TYPE_CHECKING:
    from ..study.context import Workspace

DELTA = "edit.json"
USUAL = "embedded:smollm2-135m"
Kind = Literal["run", "edit", "model"]


@dataclass(frozen=True)
class Source:
    """What the app was opened on.

    Attributes:
        kind: a study's folder, a folder with an edit in it, or a model alone.
        folder: where the study or the edit is; None for a model.
        base: where the base of an edit is, if not where the edit says.
    """

    kind: Kind
    given: str
    folder: Path | None = None
    base: str | None = None

    @property
    def study(self) -> Path | None:
        """The folder of the study behind it: the run itself, or what `detox` left beside its
        checkpoint; None where there is none.
        """
        if self.kind == "run" or self.folder is None:
            return self.folder
        folder = self.folder.resolve()
        work = folder.with_name(f"{folder.name}-work")
        return work if run_record(work) else None


def workspace(study: Path) -> Workspace:
    """A study as its own stages see it, read anew each time, so that a run that is still going
    fills it (DialdownError where run.json is of another version).
    """
    from ..report.run import settings_of
    from ..study.context import Workspace

    return Workspace(settings_of(study, run_record(study) or {"config": {}}), study)


def places_of_delta(folder: Path) -> tuple[Path, Path]:
    """Where the two files of an edit may be: there, or in the `dialdown` folder of an export."""
    return folder, folder / "dialdown"


def find_source(given: str | None, base: str | None = None) -> Source:
    """What a name or a folder is; without one the latest run in `runs`, or the embedded model. A
    folder that is not there, or neither a run nor an edit nor a model, and a hub id that cannot be
    fetched, are refused (DialdownError).
    """
    if given is None:
        runs = [path.parent for path in Path(RUNS).glob(f"*/{RUN}")]
        latest = max(runs, key=lambda folder: (folder / RUN).stat().st_mtime, default=None)
        given = USUAL if latest is None else str(latest)
    folder = Path(given)
    if not folder.is_dir():
        of_runs = folder.parts[:1] == (RUNS,)
        if folder.exists() or folder.is_absolute() or given.startswith(".") or of_runs:
            raise DialdownError(
                f"{given} is {'not a folder' if folder.exists() else 'not there'}: pass the folder "
                "of a study (`dialdown run` makes one), an exported folder, or a model's folder "
                "or hub id."
            )
        if not given.startswith("embedded:"):
            from ..exporting.checkpoint import locate

            # Here in a second; loading asks the hub again and again before it gives up.
            locate(given)
        kind: Kind = "model"
    elif run_record(folder):
        kind = "run"
    elif any((place / DELTA).is_file() for place in places_of_delta(folder)):
        kind = "edit"
    elif (folder / "config.json").is_file():
        kind = "model"
    else:
        raise DialdownError(
            f"{given} holds neither a study ({RUN}) nor an edit ({DELTA}) nor a model "
            "(config.json): pass a folder that `dialdown run` or `dialdown detox` wrote, or a "
            "model."
        )
    if base is not None and kind != "edit":
        raise DialdownError(
            f"A base was given, and {given} holds no edit to put on it: leave out --base."
        )
    return Source(kind, given, None if kind == "model" else folder, base)
