"""The report as the last stage of `dialdown run`, as a page that fills before, and drawn again from
what a study left.
"""

from __future__ import annotations

from pathlib import Path

from ..study.context import Facts, Stages, Workspace
from ..study.folder import held_whole, records
from ..study.run import STUDY


def report(work: Workspace) -> Facts:
    """The page, and the tables and figures that need the measured rows."""
    # The libraries that draw take seconds to import, which the other stages need not wait for.
    from .page import write_report

    write_report(work.folder)
    return {}


RUN: Stages = {**STUDY, "report": report}


def show(folder: Path, running: bool) -> None:
    """For `Study.show`: the page as far as the run got; one that is finished stays as it is."""
    from .page import fill

    if "report" not in records(folder):
        fill(folder, running=running)


def report_again(folder: Path) -> Path:
    """Write the report of a study again and return its path; see `held_whole` and `write_report`
    for the errors.
    """
    from .page import write_report

    if not records(folder):
        return write_report(folder)
    with held_whole(folder, "report"):
        return write_report(folder)
