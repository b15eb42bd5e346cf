"""Files that are either whole or absent, and the two formats every value object is saved in.

A file is written under a temporary name in the same folder, synced to disk and renamed, so a killed run never leaves
half a file under a name that a later run would trust. Tensors travel as safetensors with one JSON record in the
header (schema version, model, protocol, ...); nothing here can execute code on loading.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .errors import DialdownError

SCHEMA = 2


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one sentence that names the path."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number, reason = _os_error(error)
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise DialdownError(
                f"The disk is full while writing {path}: what was done before is kept; free some space and repeat the same command."
            ) from error
        if number in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise DialdownError(f"{path} cannot be written ({reason}): pass a folder you may write to.") from error
        raise


def _os_error(error: OSError | SafetensorError) -> tuple[int | None, str | None]:
    """Number and name of a system error; safetensors passes it on in its message only ("... (os error 28)")."""
    if isinstance(error, OSError):
        return error.errno, error.strerror
    found = re.search(r"\(os error (\d+)\)", str(error))
    return (int(found[1]), os.strerror(int(found[1]))) if found else (None, None)


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary path beside `path`, sync it, and rename it to `path`.

    Raises:
        DialdownError: the disk is full or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(partial)
            with partial.open("rb+") as handle:
                os.fsync(handle.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""

    def write(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8")

    write_atomic(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN is refused because JSON has none."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DialdownError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DialdownError(f"{path} does not exist: run the stage that writes it first.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DialdownError(
            f"{path} is not valid JSON ({error}): delete it and repeat the stage that writes it."
        ) from error


def write_arrays(path: Path, kind: str, arrays: Mapping[str, NDArray[Any]], record: Mapping[str, Any]) -> None:
    """Write named arrays as safetensors with `record` as JSON in the header, atomically."""
    header = {"dialdown": json.dumps({"schema": SCHEMA, "kind": kind, **record}, allow_nan=False)}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}

    def write(partial: Path) -> None:
        # safetensors' own `save_file` makes files that nobody else may read.
        partial.write_bytes(save(contiguous, metadata=header))

    write_atomic(path, write)


def read_arrays(path: Path, kind: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what `write_arrays` wrote: the arrays and the record.

    Raises:
        DialdownError: the file is missing, damaged, or holds another kind of value or a newer schema.
    """
    try:
        with safe_open(path, framework="numpy") as handle:
            record = json.loads((handle.metadata() or {}).get("dialdown", "{}"))
            arrays = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  (safe_open is no mapping)
    except FileNotFoundError as error:
        raise DialdownError(f"{path} does not exist: pass the file a dialdown {kind} was saved to.") from error
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise DialdownError(f"{path} is damaged or no safetensors file ({error}): write it again.") from error
    if record.get("kind") != kind or record.get("schema") != SCHEMA:
        found = f"{record.get('kind', 'something else')!r} (schema {record.get('schema')})"
        raise DialdownError(
            f"{path} holds {found}, not a dialdown {kind} of schema {SCHEMA}: pass another file or write it again."
        )
    return arrays, record


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits that change when any of the parts (arrays, or values that JSON can write) changes."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
