"""Files that are either whole or absent, and the two formats every value object is saved in.

A file is written under a temporary name in the same folder, synced to disk and renamed, so a killed
run never leaves half a file under a name that a later run would trust. Tensors travel as
safetensors with one JSON record in the header (schema version, model, protocol, ...); nothing here
can execute code on loading. Both formats can carry a check of their content, so that a byte that
changed on the disk is noticed where the file is read.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .errors import DialdownError

SCHEMA = 2
# The first lines of a sealed JSON file: the sha256 of every byte after them.
SEAL = '{{\n "sha256": "{}",\n'
# The sizes and hashes of the files of a folder that is finished.
MANIFEST = "files.json"
# What a path may be that names no file to read.
NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
FULL = {errno.ENOSPC, errno.EDQUOT}
UNFIT = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT,
    errno.EISDIR, errno.ENAMETOOLONG,
    errno.ELOOP, errno.ENOTEMPTY, errno.EILSEQ,
}  # fmt: skip


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Name the path in a sentence where the disk is full or read-only, or no file can be there."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number, reason = _os_error(error)
        if number in FULL:
            raise DialdownError(
                f"The disk is full while writing {path}: what was done before is kept; free some "
                "space and repeat the same command."
            ) from error
        if number == errno.EFBIG:
            raise DialdownError(
                f"{path} would be larger than this disk or your limits (ulimit -f) allow: what was "
                "done before is kept; raise the limit or pass a folder on another disk."
            ) from error
        if number in UNFIT:
            raise DialdownError(
                f"{path} cannot be written ({reason}): pass a folder you may write to."
            ) from error
        raise


def _os_error(error: OSError | SafetensorError) -> tuple[int | None, str | None]:
    """Number and name of a system error; safetensors passes it on in its message only ("... (os
    error 28)", and before 0.6 "Os { code: 28, ... }").
    """
    if isinstance(error, OSError):
        return error.errno, error.strerror
    match = re.search(r"\(os error (\d+)\)|Os \{ code: (\d+)", str(error))
    number = int(match[1] or match[2]) if match else None
    return number, None if number is None else os.strerror(number)


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, sync it, and rename it to `path`."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(partial)
            with partial.open("rb+") as handle:
                os.fsync(handle.fileno())
            partial.replace(path)
        finally:
            # Where the name is too long there is no such file either, and the first error says so.
            with suppress(OSError):
                partial.unlink()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `path` where the block ends well.

    Processes that write to one place at once do not disturb each other, and the last has it. What
    stood there goes only once the new folder is whole.
    """
    path = path.resolve()
    remove_abandoned(path)
    process = psutil.Process()
    this = _process_name(process.pid, process.create_time())
    new, old = (_beside(path, f"{this}.{what}") for what in ("partial", "old"))
    with disk_errors(path):
        try:
            new.mkdir(parents=True)
            yield new
            for file in new.rglob("*"):
                if file.is_file():
                    with file.open("rb+") as handle:
                        os.fsync(handle.fileno())
            if path.exists():
                path.rename(old)
            new.rename(path)
        finally:
            if old.exists() and not path.exists():
                old.rename(path)
            for folder in (new, old):
                shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(path: Path) -> None:
    """Remove what a killed `whole_folder` left; what it was about to replace comes back."""
    running = {
        _process_name(process.pid, process.info["create_time"])
        for process in psutil.process_iter(["create_time"])
    }
    here = _beside(path, "").name
    for folder in path.parent.glob(f"{glob.escape(here)}*"):
        process, _, what = folder.name.removeprefix(here).rpartition(".")
        if process in running:
            continue
        if what == "old" and not path.exists():
            folder.rename(path)
        elif what in ("partial", "old"):
            shutil.rmtree(folder, ignore_errors=True)


def _beside(path: Path, ending: str) -> Path:
    """A hidden neighbour of a path, named after this machine, whose processes alone are known."""
    return path.with_name(f".{path.name}.{platform.node()}.{ending}")


def _process_name(number: int, start: float | None) -> str:
    """A process by its start too, since numbers are given again."""
    return f"{number}-{int(start or 0)}"


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    write_atomic(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN is refused because JSON has none."""
    write_text(path, _as_json(value))


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object that begins with the sha256 of everything after it, atomically."""
    body = _as_json(value).removeprefix("{\n")
    write_text(path, SEAL.format(hashlib.sha256(body.encode()).hexdigest()) + body)


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote; None where there is no such file, or a byte of it has changed."""
    try:
        content = path.read_bytes()
    except NO_FILE:
        return None
    body = content[len(SEAL.format("0" * 64)) :]
    if content != SEAL.format(hashlib.sha256(body).hexdigest()).encode() + body:
        return None
    value: dict[str, Any] = json.loads(content)
    del value["sha256"]
    return value


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except NO_FILE as error:
        raise DialdownError(
            f"{path} does not exist: run the stage that writes it first."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DialdownError(
            f"{path} is not valid JSON ({error}): repeat the command that writes it, which makes "
            "it again."
        ) from error


def kept_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; empty where it is missing, damaged or holds none."""
    try:
        value = read_json(path)
    except DialdownError:
        return {}
    return value if isinstance(value, dict) else {}


def write_arrays(
    path: Path, kind: str, arrays: Mapping[str, NDArray[Any]], record: Mapping[str, Any]
) -> None:
    """Write named arrays as safetensors, with `record` and a check of both in the header."""
    written = {"schema": SCHEMA, "kind": kind, **record}
    header = {
        "dialdown": json.dumps({"check": _check(written, arrays), **written}, allow_nan=False)
    }
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # safetensors' own `save_file` makes files that nobody else may read.
    write_atomic(path, lambda partial: partial.write_bytes(save(contiguous, metadata=header)))


def read_arrays(path: Path, kind: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what `write_arrays` wrote: the arrays and the record."""
    try:
        with safe_open(path, framework="numpy") as handle:
            record = json.loads((handle.metadata() or {}).get("dialdown", "{}"))
            arrays = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise DialdownError(
            f"{path} does not exist: pass the file a dialdown {kind} was saved to."
        ) from error
    except (SafetensorError, OSError, TypeError, ValueError, RecursionError) as error:
        # A TypeError is of a number format that numpy does not have.
        raise DialdownError(
            f"{path} is damaged or no safetensors file ({error}): write it again."
        ) from error
    if not isinstance(record, dict):
        record = {}
    if record.get("kind") != kind or record.get("schema") != SCHEMA:
        held = f"{record.get('kind', 'something else')!r} (schema {record.get('schema')})"
        raise DialdownError(
            f"{path} holds {held}, not a dialdown {kind} of schema {SCHEMA}: pass another file or "
            "write it again."
        )
    # Files of earlier versions have none and begin with their schema.
    if next(iter(record)) != "schema" and record.pop("check", None) != _check(record, arrays):
        raise DialdownError(
            f"{path} is damaged (its content is not what was written): write it again."
        )
    return arrays, record


def _check(record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    return fingerprint(
        json.loads(json.dumps(record)),
        *(part for name in sorted(arrays) for part in (name, arrays[name])),
    )


def kept_arrays(path: Path, kind: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
    """What `read_arrays` reads; None where the file is missing or damaged."""
    try:
        return read_arrays(path, kind)
    except DialdownError:
        return None


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits that change with any of the parts: arrays, or what JSON can write."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hashes(folder: Path, places: Iterable[str]) -> dict[str, str | None]:
    """The sha256 of each file, read side by side; None for one that cannot be read."""

    def sha256(place: str) -> str | None:
        try:
            return file_sha256(folder / place)
        except OSError:
            return None

    places = [*places]
    with ThreadPoolExecutor() as pool:
        return dict(zip(places, pool.map(sha256, places), strict=True))


def sizes_and_hashes(folder: Path, places: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size in bytes and sha256 of each file."""
    state = hashes(folder, places)
    return {
        place: {"bytes": (folder / place).stat().st_size, "sha256": sha256}
        for place, sha256 in state.items()
    }


def harmed(folder: Path, recorded: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which of the recorded files are gone, or not as they were recorded."""
    now = hashes(folder, recorded)
    return [place for place, entry in recorded.items() if now[place] != entry["sha256"]]


def seal(folder: Path) -> None:
    """Record the files of a folder that is finished, in the folder."""
    places = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    write_sealed(
        folder / MANIFEST, {"files": sizes_and_hashes(folder, sorted({*places} - {MANIFEST}))}
    )


def damaged(folder: Path) -> bool:
    """Whether recorded files of a folder are gone or changed; a kill may come before `seal`."""
    record = read_sealed(folder / MANIFEST)
    return (folder / MANIFEST).exists() if record is None else bool(harmed(folder, record["files"]))
