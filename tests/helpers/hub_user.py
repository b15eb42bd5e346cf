"""A user's shell: runs `dialdown` commands, each in a process of its own with the variables this
one was started with.

One line of JSON in, commands to run at once, each its arguments, where its output goes and further
variables; one line out, their exit statuses. torch and the rest are imported once and forked: a
fresh interpreter would spend longer importing than downloading.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.util import _run_finalizers
from pathlib import Path
from typing import NoReturn

# All that a command may need, for a shell whose variables hold for each of them.
ALL = ("dialdown.report.page", "dialdown.study.detox", "dialdown.training.trainer")
# What knows of no hub, for a shell whose commands have variables of their own: the hub's client
# reads them when it is imported.
WITHOUT_HUB = ("polars", "pyarrow", "scipy.stats", "sklearn.linear_model", "torch")


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    status: int
    output: str
    errors: str


class User:
    """The test's end: starts the shell and gives it commands."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], imports: Sequence[str] = ALL
    ) -> None:
        self.folder = folder
        self.home = folder / "home"
        own = {"HF_HOME": str(self.home), "DIALDOWN_CACHE": str(folder / "cache"), "COLUMNS": "200"}
        # Old releases of setuptools warn in every process beside new ones of what they patch.
        own["PYTHONWARNINGS"] = "ignore::UserWarning:_distutils_hack"
        unset = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "DIALDOWN_"))
        }
        self._shell = subprocess.Popen(
            [sys.executable, __file__, *imports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**unset, **own, **environment},
        )

    def dialdown(self, *arguments: object) -> Finished:
        """Run a command to its end."""
        return self.at_once([arguments])[0]

    def at_once(
        self,
        commands: Sequence[Sequence[object]],
        variables: Sequence[Mapping[str, str]] | None = None,
    ) -> list[Finished]:
        """Run commands at the same time, each to its end; the hub's client spends most of a failure
        waiting.
        """
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        said = [
            [str(self.folder / f"{number}.{end}") for end in ("out", "err")]
            for number in range(len(commands))
        ]
        lines = [
            [[str(word) for word in words], *paths, {**own}]
            for words, paths, own in zip(
                commands, said, variables or [{}] * len(commands), strict=True
            )
        ]
        self._shell.stdin.write(json.dumps(lines) + "\n")
        self._shell.stdin.flush()
        statuses = json.loads(self._shell.stdout.readline())
        return [
            Finished(status, *(Path(path).read_text() for path in paths))
            for status, paths in zip(statuses, said, strict=True)
        ]

    def close(self) -> None:
        """End the shell."""
        self._shell.terminate()
        # Closes its pipes too.
        self._shell.communicate()


def _run(arguments: list[str], output: str, errors: str, variables: dict[str, str]) -> NoReturn:
    os.environ.update(variables)
    from dialdown.cli.main import main

    for path, stream in ((output, 1), (errors, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    # The shell's own has been read from.
    sys.stdin = io.StringIO()
    sys.argv = ["dialdown", *arguments]
    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    # To take apart all that the shell imported takes a child seconds. Python 3.14 tells on standard
    # error of locks that are not handed back.
    _run_finalizers()
    os._exit(status)


def _shell(imports: Sequence[str]) -> None:
    if any(name.startswith("dialdown") for name in imports):
        from dialdown.workers import quiet_libraries

        # As the commands do before they import the rest, each of them only what it needs.
        quiet_libraries()
    for name in imports:
        import_module(name)

    for line in sys.stdin:
        children = []
        for command in json.loads(line):
            if (child := os.fork()) == 0:
                _run(*command)
            children.append(child)
        print(
            [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children], flush=True
        )


if __name__ == "__main__":
    _shell(sys.argv[1:])
