"""Files are whole or absent, and what is wrong with one is one sentence."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from safetensors import SafetensorError
from safetensors.numpy import save_file

from dialdown import files
from dialdown.errors import DialdownError, nearest
from dialdown.files import (
    SCHEMA,
    disk_errors,
    file_sha256,
    fingerprint,
    read_arrays,
    read_json,
    read_sealed,
    whole_folder,
    write_arrays,
    write_atomic,
    write_json,
    write_sealed,
    write_text,
)
from helpers.stub_study import flip

ARRAYS = {"means": np.arange(6, dtype=np.float64).reshape(2, 3), "mask": np.array([True, False])}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_and_json(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "er" / "a.txt", "é\n")
    assert (tmp_path / "deep" / "er" / "a.txt").read_bytes() == "é\n".encode()
    value = {"a": [1, 2.5, None, "é"], "b": {"c": True}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value
    assert names(tmp_path) == ["a.json", "deep"]


@pytest.mark.parametrize("before", [None, "old"])
@pytest.mark.parametrize("failure", ["while writing", "on sync", "on rename", "interrupt"])
def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None, failure: str
) -> None:
    path = tmp_path / "a.txt"
    if before:
        path.write_text(before)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt if failure == "interrupt" else RuntimeError("broken")

    def write(partial: Path) -> None:
        assert partial.parent == tmp_path, "a rename is atomic only inside one folder"
        partial.write_text("half")
        if failure in ("while writing", "interrupt"):
            fail()

    if failure == "on sync":
        monkeypatch.setattr(os, "fsync", fail)
    if failure == "on rename":
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        write_atomic(path, write)
    assert names(tmp_path) == (["a.txt"] if before else [])
    assert not before or path.read_text() == before


def test_the_file_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, order = tmp_path / "a.txt", []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (order.append(("sync", path.exists())), sync(handle))
    )
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (order.append(("rename", to)), replace(self, to))[1]
    )
    write_text(path, "x")
    assert order[:2] == [("sync", False), ("rename", path)]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "The disk is full while writing .*repeat the same command"),
        (errno.EDQUOT, "The disk is full while writing .*repeat the same command"),
        (errno.EACCES, "cannot be written .*pass a folder you may write to"),
        (errno.EROFS, "cannot be written"),
        (errno.EPERM, "cannot be written"),
        (errno.EFBIG, "would be larger than this disk or your limits .* allow"),
    ],
)
def test_a_disk_that_takes_no_more_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "a.json"
    path.write_text("[0]")
    with pytest.raises(DialdownError, match=message):
        write_json(path, [1])
    assert read_json(path) == [0]
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "message",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",
        'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space" })',
    ],
)
def test_safetensors_on_a_full_disk(tmp_path: Path, message: str) -> None:
    """safetensors, which transformers saves models with, reports a full disk as its own error, not
    as an OSError.
    """
    with (
        pytest.raises(DialdownError, match="The disk is full while writing"),
        files.disk_errors(tmp_path),
    ):
        raise SafetensorError(message)


def test_arrays_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DialdownError, match="The disk is full while writing"):
        write_arrays(tmp_path / "a.safetensors", "thing", ARRAYS, {})
    assert names(tmp_path) == []


def test_others_may_read_what_is_written_as_far_as_the_umask_lets_them(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.safetensors", "thing", ARRAYS, {})
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


LIMITED = """
import resource, sys
from safetensors import SafetensorError
from safetensors import SafetensorError
from safetensors.numpy import save_file
import numpy as np
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    save_file({"a": np.zeros(10000)}, sys.argv[1])
except SafetensorError as error:
    print(error)
"""


def test_safetensors_still_words_system_errors_so(tmp_path: Path) -> None:
    """The message the test above makes up, from a real write past a limit on file sizes."""
    pytest.importorskip("resource")
    out = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "a.safetensors")],
        capture_output=True,
        text=True,
        check=True,
    )
    worded = (f"(os error {errno.EFBIG})", f"Os {{ code: {errno.EFBIG},")
    assert any(words in out.stdout for words in worded)


def test_other_errors_are_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="strange"), disk_errors(tmp_path):
        raise OSError(errno.EIO, "strange")


@pytest.mark.parametrize("below", ["a.txt", "deep/a.txt"])
def test_a_folder_that_is_a_file(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DialdownError, match="cannot be written"):
        write_text(tmp_path / "file" / below, "y")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize(
    "kind", ["a folder", "too long a name", "a folder that went away", "a loop of links"]
)
def test_a_path_that_no_file_can_have_is_one_sentence(tmp_path: Path, kind: str) -> None:
    path = tmp_path / {"too long a name": "a" * 300}.get(kind, "a")
    if kind == "a folder":
        (path / "inner").mkdir(parents=True)
    if kind == "a loop of links":
        path.symlink_to(path)
        path = path / "b"

    def write(partial: Path) -> None:
        if kind == "a folder that went away":
            partial.parent.rmdir()
        partial.write_text("x")

    with pytest.raises(DialdownError, match="cannot be written") as caught:
        write_atomic(path, write)
    assert "\n" not in str(caught.value)
    assert not [left for left in tmp_path.rglob("*.partial")]


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_json_that_is_damaged_or_missing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(DialdownError, match="does not exist"):
        read_json(path)
    path.write_bytes(content)
    with pytest.raises(DialdownError, match="not valid JSON"):
        read_json(path)


def test_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    arrays = {**ARRAYS, "turned": ARRAYS["means"].T, "empty": np.zeros((0, 3))}
    write_arrays(path, "thing", arrays, {"model": "é", "alpha": 0.1, "none": None})
    got, record = read_arrays(path, "thing")
    assert got.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(got[name], array)
        assert got[name].dtype == array.dtype
    assert (record["model"], record["alpha"], record["none"]) == ("é", 0.1, None)


@settings(max_examples=25, deadline=None)
@given(
    array=nps.arrays(
        st.sampled_from([np.float64, np.float32, np.int64, np.bool_]),
        nps.array_shapes(max_dims=3, max_side=4),
    )
)
def test_arrays_come_back_bit_by_bit(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray
) -> None:
    path = tmp_path_factory.mktemp("arrays") / "a.safetensors"
    write_arrays(path, "thing", {"a": array}, {})
    again = read_arrays(path, "thing")[0]["a"]
    assert again.tobytes() == np.ascontiguousarray(array).tobytes()
    assert (again.shape, again.dtype) == (array.shape, array.dtype)


def test_a_record_cannot_pass_for_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_arrays(path, "thing", ARRAYS, {})
    with pytest.raises(
        DialdownError,
        match=rf"holds 'thing' \(schema {SCHEMA}\), not a dialdown direction of schema {SCHEMA}",
    ):
        read_arrays(path, "direction")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "does not exist"),
        ("folder", "damaged or no safetensors file"),
        ("empty", "damaged or no safetensors file"),
        ("text", "damaged or no safetensors file"),
        ("half", "damaged or no safetensors file"),
        ("foreign", "holds 'something else'"),
        ("garbled", "damaged|holds"),
        ("newer", f"schema {SCHEMA + 1}"),
    ],
)
def test_arrays_that_cannot_be_read(tmp_path: Path, how: str, message: str) -> None:
    path = tmp_path / "a.safetensors"
    write_arrays(path, "thing", ARRAYS, {})
    whole = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how in ("foreign", "garbled", "newer"):
        header = {
            "foreign": {},
            "garbled": {"dialdown": "{"},
            "newer": {"dialdown": f'{{"schema": {SCHEMA + 1}, "kind": "thing"}}'},
        }
        save_file({"means": ARRAYS["means"]}, path, metadata=header[how])
    elif how != "missing":
        path.write_bytes(
            {"empty": b"", "text": b"hello, this is text", "half": whole[: len(whole) // 2]}[how]
        )
    with pytest.raises(DialdownError, match=message):
        read_arrays(path, "thing")


def test_the_fingerprint_covers_all_parts() -> None:
    a = np.arange(6.0)
    parts: list[tuple[Any, ...]] = [
        (a,), (a.reshape(2, 3),), (a.astype(np.float32),), (a + 1e-12,), (a, a), (a, None), ({(
            "x"
        ): 1},), ({"x": 2},),
        ("x", "y"), ("xy",), (["x", "y"],),
    ]  # fmt: skip
    prints = [fingerprint(*part) for part in parts]
    assert len(set(prints)) == len(parts)
    assert prints == [fingerprint(*part) for part in parts]
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(a.reshape(2, 3).T) == fingerprint(np.ascontiguousarray(a.reshape(2, 3).T))


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert (
        file_sha256(tmp_path / "a")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_nearest() -> None:
    assert nearest("alhpa", ["alpha", "beta"]) == "did you mean 'alpha'?"
    assert nearest("zzz", ["beta", "alpha"]) == "known are 'alpha', 'beta'."


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DialdownError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_folder_is_whole_or_as_it_was(
    tmp_path: Path, failure: BaseException, raised: type[BaseException]
) -> None:
    path = tmp_path / "out"

    def write(name: str, failure: BaseException | None = None) -> None:
        with whole_folder(path) as folder:
            (folder / name).write_text(name)
            if failure is not None:
                raise failure

    write("first")
    with pytest.raises(raised):
        write("second", failure)
    assert [file.name for file in path.iterdir()] == ["first"]
    write("second")
    assert [file.name for file in path.iterdir()] == ["second"]
    assert [*tmp_path.iterdir()] == [path]


def test_no_flipped_bit_of_a_sealed_file_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_sealed(path, {"effect": "é", "values": [0.5, None]})
    assert (
        read_sealed(path)
        == {"effect": "é", "values": [0.5, None]}
        == {
            key: value
            for key, value in json.loads(path.read_text(encoding="utf-8")).items()
            if key != "sha256"
        }
    )
    whole = path.read_bytes()
    for place in range(len(whole)):
        flip(path, place)
        assert read_sealed(path) is None
        path.write_bytes(whole)


def test_no_flipped_bit_of_saved_arrays_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_arrays(
        path, "thing", {"means": np.arange(3.0), "mask": np.array([True])}, {"auc": 0.5, "id": "x"}
    )
    whole = path.read_bytes()
    for place in range(len(whole)):
        flip(path, place)
        with pytest.raises(DialdownError):
            read_arrays(path, "thing")
        path.write_bytes(whole)
