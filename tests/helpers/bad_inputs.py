"""Inputs that cannot work: each has a name, the command, and words of the sentence that refuses it.

Every builder gets a folder of its own and the files of a tiny study; the command is what a user
would type. The cases are in `bad_files`, `bad_settings` and `bad_folders`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Arguments = list[str]
DEEP = b"[" * 100_000  # more brackets than a parser follows


@dataclass(frozen=True)
class Inputs:
    """What a case may build on.

    Attributes:
        root: an empty folder of its own, in which the command runs.
        study: the TOML file of a tiny study that works.
        model: the folder of its model.
        edit: a folder with an edit of that model.
        run: a finished run.
    """

    root: Path
    study: Path
    model: Path
    edit: Path
    run: Path

    def command(self, *settings: str, stage: str = "run") -> Arguments:
        """The study, with some settings changed."""
        return [stage, str(self.study), "--out", str(self.root / "out"), *sets(*settings)]


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        name: of the test.
        build: makes the input and returns the command's arguments.
        words: a regular expression that the sentence matches.
        environment: variables that are set.
        typed: bytes on the standard input.
    """

    name: str
    build: Callable[[Inputs], Arguments]
    words: str
    environment: tuple[tuple[str, str], ...] = ()
    typed: bytes = b""


def sets(*settings: str) -> Arguments:
    return [word for setting in settings for word in ("--set", setting)]
