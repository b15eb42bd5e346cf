"""Kill a study, `detox` and the export again and again, flip bytes of what they left, and compare
the end with undisturbed runs.

    OMP_NUM_THREADS=1 python benchmarks/kill.py FOLDER --kills 50 --flips 100

Everything is tiny (the models and data of tests/helpers/study_files.py), so it takes minutes. Each
command runs in a process that is forked from this one, which has imported the libraries once, and
is ended by SIGKILL at a random time; the same command then goes on. Whatever a user reads of the
end must be, bit by bit, what an undisturbed run leaves.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from dialdown.cli import edits
from dialdown.cli import main as cli
from dialdown.exporting import export  # noqa: F401
from dialdown.files import file_sha256
from dialdown.report import (
    page,  # noqa: F401
    stage,  # noqa: F401
)
from dialdown.study import detox  # noqa: F401
from dialdown.training import trainer  # noqa: F401
from helpers.study_files import write_study

# What says when, where, or how long: no two runs agree on it.
OWN = {"run.json", "report.html", "training.json", "edit.json", "README.md"}


@dataclass(frozen=True)
class Command:
    """One of the commands: its arguments, the folders it fills, relative to the folder it
    runs in.
    """

    name: str
    arguments: tuple[str, ...]
    fills: tuple[str, ...]


# Fewer rows than the file asks for, which does not make them other rows.
FEW = ("--set", 'protocols=["strict"]', "--set", 'interventions.families=["steering"]')
COMMANDS = (
    Command("study", ("run", "../data/study.toml", "--out", "study", *FEW), ("study",)),
    Command(
        "detox",
        ("detox", "../data/model", "--out", "calm", "--config", "../data/study.toml"),
        ("calm", "calm-work"),
    ),
    Command(
        "export",
        ("apply", "calm", "--out", "calmer", "--strength", "2", "--base", "../data/model"),
        ("calmer",),
    ),
)


def start(command: Command, root: Path) -> int:
    """Run a command in a forked process, and give its process id; what it says goes to a file in
    the folder.
    """
    again = command.name != "study" and (root / command.fills[0]).exists()
    process = os.fork()
    if process:
        return process
    try:
        os.chdir(root)
        log = os.open(root / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        sys.argv = ["dialdown", *command.arguments, *(["--force"] if again else [])]
        cli.main()
    except SystemExit as ended:
        os._exit(ended.code if isinstance(ended.code, int) else 1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def finish(command: Command, root: Path) -> str:
    """Run a command to its end, and give what it said."""
    _, status = os.waitpid(start(command, root), 0)
    return said_at_the_end(command, root, os.waitstatus_to_exitcode(status))


def said_at_the_end(command: Command, root: Path, status: int) -> str:
    """What a command said, once it did its work; an edit of a model so small need not make it less
    toxic.
    """
    said = (root / "said.txt").read_text(encoding="utf-8", errors="replace")
    if status not in (0, edits.NOT_LESS):
        raise SystemExit(f"{command.name} ended with {status}:\n{said[-2000:]}")
    return said


def killed(command: Command, root: Path, after: float) -> bool:
    """Start a command and kill it after some seconds; whether it was still at work."""
    process, until = start(command, root), time.monotonic() + after
    while time.monotonic() < until:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            said_at_the_end(command, root, os.waitstatus_to_exitcode(status))
            return False
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return True


def left(root: Path, command: Command) -> dict[str, str]:
    """The sha256 of everything that a command leaves to be read."""
    paths = [
        path for folder in command.fills for path in (root / folder).rglob("*") if path.is_file()
    ]
    places = {path.relative_to(root): path for path in paths}
    return {
        place.as_posix(): file_sha256(path)
        for place, path in places.items()
        if place.name not in OWN
        and "stages" not in place.parts
        and not any(p.startswith(".") for p in place.parts)
    }


# The library that draws PDF files writes their objects in an order that changes from run to run.
UNORDERED = ".pdf"


def differing(digests: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """The names of what differs, is missing, or is too much."""
    return sorted(
        place
        for place in {*digests, *expected}
        if (place in digests) != (place in expected)
        or (digests[place] != expected[place] and not place.endswith(UNORDERED))
    )


def kill_all(
    root: Path, wanted: Mapping[str, Mapping[str, str]], seconds: Mapping[str, float], kills: int
) -> int:
    """Kill the commands, as often in each as its share of the time says; how many kills changed
    nothing of the end.
    """
    good, run, chance = 0, 0, random.Random(0)
    while run < kills:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        for command in COMMANDS:
            here = 0
            share = max(1, round(kills * seconds[command.name] / sum(seconds.values())))
            longest = 2.5 * seconds[command.name] / share
            while (
                run < kills and here < share and killed(command, root, chance.uniform(0, longest))
            ):
                here, run = here + 1, run + 1
            finish(command, root)
            wrong = differing(left(root, command), wanted[command.name])
            good += 0 if wrong else here
            print(
                f"{command.name}: {here} kills, {len(wrong)} files differ {wrong[:5]}", flush=True
            )
    return good


def flip_all(root: Path, wanted: Mapping[str, Mapping[str, str]], flips: int) -> int:
    """Flip one bit of a random byte of files that a run left, ten files at a time; how many are
    noticed and made again.
    """
    noticed, chance = 0, random.Random(1)
    while flips > 0:
        for command, folder in ((COMMANDS[0], "study"), (COMMANDS[1], "calm-work")):
            paths = sorted(path for path in (root / folder).rglob("*") if path.is_file())
            paths = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
            chosen = chance.sample(paths, min(10, flips, len(paths)))
            before = {path: _flip(path, chance) for path in chosen}
            said = finish(command, root)
            wrong = {root / place for place in differing(left(root, command), wanted[command.name])}
            told = "damaged after it was written" in " ".join(said.split())
            missed = [
                path
                for path in chosen
                if path in wrong or not told or path.read_bytes() == before[path]
            ]
            noticed, flips = noticed + len(chosen) - len(missed), flips - len(chosen)
            print(
                f"{folder}: {len(chosen)} flips, missed: "
                f"{[str(path.relative_to(root)) for path in missed]}",
                flush=True,
            )
            if flips <= 0:
                break
    return noticed


def _flip(path: Path, chance: random.Random) -> bytes:
    """Flip a bit as a disk would, which leaves size and time alone; the content that is then
    there.
    """
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return bytes(content)


def main() -> None:
    """Run the undisturbed commands, then the kills, then the flips."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--flips", type=int, default=100)
    given = parser.parse_args()
    folder = given.folder.absolute()
    (folder / "data").mkdir(parents=True, exist_ok=True)
    write_study(folder / "data")
    # Some records name the folder they were made in, so all of it happens in one.
    root = folder / "run"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    wanted, seconds = {}, {}
    for command in COMMANDS:
        began = time.monotonic()
        finish(command, root)
        seconds[command.name] = time.monotonic() - began
        wanted[command.name] = left(root, command)
        print(
            f"{command.name}: {seconds[command.name]:.1f} s, {len(wanted[command.name])} files",
            flush=True,
        )
    good = kill_all(root, wanted, seconds, given.kills)
    print(f"kills: {good} of {given.kills} left what an undisturbed run leaves", flush=True)
    noticed = flip_all(root, wanted, given.flips)
    print(f"flips: {noticed} of {given.flips} were noticed and made good", flush=True)
    sys.exit(0 if (good, noticed) == (given.kills, given.flips) else 1)


if __name__ == "__main__":
    main()
