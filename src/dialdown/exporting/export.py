"""An edited model as an ordinary checkpoint folder: the base rewritten, verified, described, and
only then in its place.

`export` takes the edit as a value, `apply_delta` takes edit and base from a delta; both do the
same.
"""

from __future__ import annotations

import glob
import math
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from ..data.local_paths import is_local_path
from ..data.model_files import CONFIG, copy_files, left_out, own_file
from ..errors import DialdownError
from ..files import disk_errors, file_sha256, write_json
from ..interventions.intervention import Intervention
from ..progress import Progress
from ..workers import return_free_memory
from .card import CARD, write_card
from .checkpoint import Checkpoint, open_checkpoint
from .delta import FOLDER, base_of, check_notes, load_delta, rounded, write_delta
from .rewrite import SHARD_BYTES, Plan, plan_edit, write_tensors
from .verify import PROMPTS, Verification, verify_export


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        folder: where it is.
        files: sha256 of every file but README.md, by its path in the folder.
        verification: what verification measured, or None where it was left out.
        dropped: neurons removed from each layer by pruning.
        base_sha256: the identity of the base (see `Checkpoint.base_sha256`).
        left_out: what a local base's folder has besides, and was not copied.
    """

    folder: Path
    files: dict[str, str]
    verification: Verification | None
    dropped: int
    base_sha256: str
    left_out: tuple[str, ...]


def export(
    source: str | os.PathLike[str],
    edit: Intervention,
    out: str | Path,
    *,
    revision: str | None = None,
    force: bool = False,
    verify: bool = True,
    prompts: Sequence[str] = PROMPTS,
    prune: bool = False,
    shard_bytes: int = SHARD_BYTES,
    notes: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write a base model with an edit folded in (METHOD §7), tensor by tensor, as a folder any user
    can load.

    The columns an edit changes are computed in float64 and rounded once to the checkpoint's own
    dtype; everything else is the base's, byte for byte. Writing holds a few tensors at a time;
    verification base and result, one after the other, the down projections in float32. A pure scale
    is first rounded to float32 gains (see `delta.rounded`).

    Args:
        source: the base: a folder, `embedded:NAME` or a hub id.
        edit: the edit.
        out: the folder to write. It appears whole or not at all.
        revision: a hub branch, tag or commit.
        force: replace what is in `out`.
        verify: reload the folder and compare its logits with the hooked base model before it takes
            its place, also in vLLM where that is installed (a minute or more).
        prompts: the texts to compare on.
        prune: remove neurons of gain 0, as many from every layer as the layer with fewest of them
            has.
        shard_bytes: the size a weight file does not exceed, unless one tensor does.
        notes: for the model card and the delta (see `delta.Notes`).
        progress: called with (label, done, total): tensors, then prompts.

    Raises:
        DialdownError: `out` is not empty and `force` is not set, or holds the base itself; the disk
            has not enough space, or the memory for a verification; the base is missing, quantised
            or damaged; the edit does not fit it or needs a bias it has no place for; there is
            nothing to prune; or verification measured a difference above its tolerance, or vLLM
            runs the base and not the result.
    """
    check_out(Path(out), force)
    base = open_checkpoint(source, revision=revision, progress=progress)
    return _export(
        base, edit, Path(out), force, verify, prompts, prune, shard_bytes, notes, progress
    )


def apply_delta(
    delta_folder: str | Path,
    out: str | Path,
    *,
    base: str | os.PathLike[str] | None = None,
    strength: float = 1.0,
    force: bool = False,
    verify: bool = True,
    prompts: Sequence[str] = PROMPTS,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Exported:
    """Put the edit of a delta on its base again: `export`, with the base checked against the
    delta's sha256.

    Args:
        delta_folder: the folder of a delta, or an exported folder.
        out: see `export`.
        base: where the base is; by default where the delta says.
        strength: how far to dial the edit (see `Intervention.at`); 1 is the edit as stored. Notes
            are kept at 1 only, since what was measured holds for it alone.
        force: see `export`.
        verify: see `export`.
        prompts: see `export`.
        shard_bytes: see `export`.
        progress: see `export`.

    Raises:
        DialdownError: see `load_delta`, `base_of` and `export`.
    """
    check_out(Path(out), force)
    delta = load_delta(delta_folder)
    edit, notes = (
        (delta.edit, delta.record["notes"]) if strength == 1 else (delta.edit.at(strength), {})
    )
    found = base_of(delta, base, progress=progress)
    return _export(
        found, edit, Path(out), force, verify, prompts, False, shard_bytes, notes, progress
    )


def exported_before(
    source: str | os.PathLike[str],
    edit: Intervention,
    out: str | Path,
    *,
    revision: str | None = None,
    verify: bool = True,
    prompts: Sequence[str] = PROMPTS,
    progress: Progress | None = None,
) -> Exported | None:
    """What is in `out`, where that is the whole export of this edit on this base; else None.

    A command that was killed after its export took its place finds it so, and need not write it
    again.

    Args:
        source: see `export`.
        edit: see `export`.
        out: see `export`.
        revision: see `export`.
        verify: compare its logits again; an export that is not what the edit does is none.
        prompts: see `export`.
        progress: see `export`.
    """
    out = Path(out)
    if not (out / CARD).is_file():
        return None
    try:
        delta = load_delta(out)
        if delta.edit.key != rounded(edit).key:
            return None
        base = base_of(delta, source, revision=revision, progress=progress)
        open_checkpoint(out)
        verified = _verify(base, edit, out, prompts, out, progress) if verify else None
    except DialdownError:
        return None
    return Exported(
        out, _digests(out), verified, 0, delta.sha256, left_out(base.folder) if base.local else ()
    )


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of every file but the card, by its path in the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / CARD)
    return {str(path.relative_to(folder)): file_sha256(path) for path in paths}


def _export(
    base: Checkpoint,
    edit: Intervention,
    out: Path,
    force: bool,
    verify: bool,
    prompts: Sequence[str],
    prune: bool,
    shard_bytes: int,
    notes: Mapping[str, Any] | None,
    progress: Progress | None,
) -> Exported:
    check_notes(notes or {})
    _keep_out_of_harm(base, out)
    edit = rounded(edit)
    plan = plan_edit(base, edit, prune=prune)
    _check_space(plan.size, out)
    if verify:
        _check_memory(base)
    out = out.resolve()
    work = _beside(out, "partial")
    with disk_errors(out):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            digests = base.digests()
            write_tensors(
                work,
                plan.tensors,
                metadata=base.metadata,
                digests=digests,
                shard_bytes=shard_bytes,
                progress=progress,
            )
            copy_files(base.folder, work)
            besides = left_out(base.folder) if base.local else ()
            _write_config(base, plan, work)
            sha256 = base.base_sha256(digests)
            delta = write_delta(work / FOLDER, edit, base, sha256, notes)
            verified = _verify(base, edit, work, prompts, out, progress) if verify else None
            files = _digests(work)
            write_card(work, delta, base.folder, files, verified, plan.dropped, besides)
            _replace(work, out, force)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return Exported(out, files, verified, plan.dropped, sha256, besides)


def _beside(out: Path, what: Literal["partial", "old"]) -> Path:
    """Where this process writes, or keeps what it replaces, until the export is whole."""
    process = psutil.Process()
    return out.with_name(
        f".{out.name}.{platform.node()}.{process.pid}-{int(process.create_time())}.{what}"
    )


def _remove_abandoned(out: Path) -> None:
    """What exports to this folder left when their process was killed, each as large as the
    model.
    """
    running = {
        f"{one.pid}-{int(one.info['create_time'] or 0)}"
        for one in psutil.process_iter(["create_time"])
    }
    here = f".{out.name}.{platform.node()}."
    for path in sorted(out.parent.glob(f"{glob.escape(here)}*")):
        process, _, what = path.name.removeprefix(here).rpartition(".")
        if process in running or what not in ("partial", "old"):
            continue
        if what == "old" and not out.exists():
            path.rename(out)
        else:
            shutil.rmtree(path, ignore_errors=True)


def check_out(out: Path, force: bool) -> None:
    """Refuse a folder that an export would have to replace, before any work is done for it
    (DialdownError).

    What exports that were killed left beside it is cleared up first.
    """
    _remove_abandoned(out.resolve())
    if out.exists() and not out.is_dir():
        raise DialdownError(f"{out} is a file, and an export is a folder: pass another path.")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise DialdownError(
            f"The folder {out} is not empty: pass another one, or force (--force) to replace all "
            "that is in it."
        )


def check_base(
    source: str | os.PathLike[str],
    out: Path,
    *,
    verify: bool,
    revision: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Refuse a base that `export` would refuse, or a machine too small for it, before any work is
    done (DialdownError).
    """
    base = open_checkpoint(source, revision=revision, progress=progress)
    _keep_out_of_harm(base, out)
    _check_space(base.size, out)
    if verify:
        _check_memory(base)


def _keep_out_of_harm(base: Checkpoint, out: Path) -> None:
    """What `force` must not delete: the base that is read, the folder one stands in, one's home."""
    out = out.resolve()
    for what, path in (
        ("base model", base.folder),
        ("working directory", Path.cwd()),
        ("home", Path.home()),
    ):
        if path.resolve().is_relative_to(out):
            raise DialdownError(
                f"The export cannot replace {out}, which holds the {what}: pass another folder."
            )


def _check_memory(base: Checkpoint) -> None:
    return_free_memory()
    numbers = {name: math.prod(base.tensors[name].shape) for name in base.weights}
    # Down projections are held in float32, and one module at a time is widened to it.
    width = min(4, base.dtype.itemsize)
    downs = sum(numbers[name] for name in base.downs)
    needed = width * sum(numbers.values()) + (4 - width) * downs + 4 * max(numbers.values())
    free = psutil.virtual_memory().available
    if free < needed:
        raise DialdownError(
            f"Verification loads {base.name}, which needs {needed / 1e9:.2f} GB of memory, and "
            f"{free / 1e9:.2f} GB are free: "
            "leave it out here (--no-verify, or verify=False), or export where there is more "
            "memory."
        )


def _check_space(size: int, out: Path) -> None:
    needed = int(1.05 * size)
    place = next(path for path in out.absolute().parents if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DialdownError(
            f"The export needs {needed / 1e9:.2f} GB and {place} has {free / 1e9:.2f} GB free: "
            "free some space, or pass a folder on another disk."
        )


def _write_config(base: Checkpoint, plan: Plan, work: Path) -> None:
    """The base's own file, unless the edit changed it or it names a folder of the machine that
    wrote it.
    """
    config = plan.config or base.config
    if is_local_path(str(config.get("_name_or_path", ""))):
        write_json(
            work / CONFIG, {key: value for key, value in config.items() if key != "_name_or_path"}
        )
    elif plan.config is None:
        shutil.copyfile(own_file(base.folder, CONFIG), work / CONFIG)
    else:
        write_json(work / CONFIG, config)


def _verify(
    base: Checkpoint,
    edit: Intervention,
    work: Path,
    prompts: Sequence[str],
    out: Path,
    progress: Progress | None,
) -> Verification:
    verified = verify_export(
        base.folder, edit, work, dtype=base.dtype, prompts=prompts, progress=progress
    )
    if not verified.passed:
        raise DialdownError(
            f"The exported checkpoint does not do what the edit does: {verified.complaint}, so "
            f"{out} was not written: "
            "repeat the export, or leave verification out (--no-verify, or verify=False) to write "
            "it and look."
        )
    return verified


def _replace(work: Path, out: Path, force: bool) -> None:
    """Put the finished folder in its place; an old one goes only once the new one is whole."""
    check_out(out, force)  # somebody else may have written there meanwhile
    old = _beside(out, "old")
    if out.exists():
        out.rename(old)
    work.rename(out)
    shutil.rmtree(old, ignore_errors=True)
