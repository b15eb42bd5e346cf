"""An edited model as an ordinary checkpoint folder: the base with other numbers in it, verified,
described, and only then in its place.

`export` takes the edit as a value, `apply_delta` takes edit and base from a delta; both do the
same.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from ..data.local_paths import is_local_path
from ..data.model_files import CONFIG, copy_files, left_out, own_file
from ..errors import DialdownError
from ..files import file_sha256, remove_abandoned, whole_folder, write_json
from ..interventions.intervention import Intervention
from ..workers import return_free_memory
from .card import CARD, write_card
from .checkpoint import Checkpoint, open_checkpoint
from .delta import FOLDER, base_of, check_notes, load_delta, rounded, write_delta
from .rewrite import write_weights
from .verify import Verification, verify_export
from .vllm import check_vllm

Verify = bool | Literal["vllm"]


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        folder: where it is.
        files: sha256 of every file but README.md, by its path in the folder.
        verification: what verification measured, or None where it was left out.
        left_out: what a local base's folder has besides, and was not copied.
    """

    folder: Path
    files: dict[str, str]
    verification: Verification | None
    left_out: tuple[str, ...]


def export(
    source: str | os.PathLike[str],
    edit: Intervention,
    out: str | Path,
    *,
    revision: str | None = None,
    force: bool = False,
    verify: Verify = True,
    notes: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a base model with an edit folded in (METHOD §7) as a folder any user can load.

    Writing holds one matrix at a time (see `rewrite`), verification base and result, one after the
    other. A pure scale is first rounded to float32 gains (see `delta.rounded`).

    Args:
        source: the base: a folder, `embedded:NAME` or a hub id.
        edit: the edit.
        out: the folder to write, whole or not at all.
        revision: a hub branch, tag or commit, of a hub id.
        force: replace what is in `out`, if that is a model.
        verify: reload the folder and compare its logits with the hooked base model before it takes
            its place; "vllm" also in vLLM (a minute or more).
        notes: for the model card and the delta (see `delta.Notes`).

    Raises:
        DialdownError: see `check_export`; the edit does not fit the base or needs a bias it has no
            place for; or verification measured a difference above its tolerance.
    """
    base = check_export(source, out, revision=revision, force=force, verify=verify)
    return _export(base, edit, Path(out), force, verify, notes or {})


def apply_delta(
    delta_folder: str | Path,
    out: str | Path,
    *,
    base: str | os.PathLike[str] | None = None,
    strength: float = 1.0,
    force: bool = False,
    verify: Verify = True,
) -> Exported:
    """Put the edit of a delta on its base again: `export`, with the base checked against the
    delta's sha256.

    Args:
        delta_folder: the folder of a delta, or an exported folder.
        out, force, verify: see `export`.
        base: where the base is; by default where the delta says.
        strength: how far to dial the edit (see `Intervention.at`); 1 is the edit as stored. Notes
            are kept at 1 only, since what was measured holds for it alone.

    Raises:
        DialdownError: see `load_delta`, `base_of` and `export`.
    """
    check_out(Path(out), force)
    delta = load_delta(delta_folder)
    opened = base_of(delta, base)
    _check_base(opened, Path(out), verify)
    edit, notes = delta.edit, delta.record["notes"]
    if strength != 1:
        edit, notes = edit.at(strength), {}
    return _export(opened, edit, Path(out), force, verify, notes)


def check_export(
    source: str | os.PathLike[str],
    out: str | Path,
    *,
    revision: str | None = None,
    force: bool = False,
    verify: Verify = True,
) -> Checkpoint:
    """Open the base of an export, and refuse what could not be written, before any work is done;
    see `export` for the arguments.
    """
    check_out(Path(out), force)
    base = open_checkpoint(source, revision=revision)
    _check_base(base, Path(out), verify)
    return base


def exported_before(
    source: str | os.PathLike[str],
    edit: Intervention,
    out: str | Path,
    *,
    revision: str | None = None,
    verify: Verify = True,
) -> Exported | None:
    """What is in `out`, where that is the whole export of this edit on this base; else None. With
    `verify` its logits are compared again; see `export` for the other arguments.

    A command that was killed after its export took its place finds it so, and need not write it
    again.
    """
    out, edit = Path(out), rounded(edit)
    if not is_export(out):
        return None
    files = _digests(out)
    if not _are_in_card(files, out):
        return None
    try:
        delta = load_delta(out)
        if delta.edit.key != edit.key:
            return None
        base = base_of(delta, source, revision=revision)
        open_checkpoint(out)
        verified = _verify(base, edit, out, verify)
    except DialdownError:
        return None
    return Exported(out, files, verified, _left_out(base))


def _are_in_card(files: Mapping[str, str], out: Path) -> bool:
    """Whether the card, which is written last, has the sha256 of each file."""
    card = (out / CARD).read_text(encoding="utf-8")
    return all(digest in card for digest in files.values())


def is_export(out: Path) -> bool:
    """Whether a folder holds what `export` writes, of whatever edit."""
    try:
        load_delta(out)
    except DialdownError:
        return False
    return (out / CARD).is_file()


def check_out(out: Path, force: bool) -> None:
    """Refuse a folder that an export would have to replace (DialdownError).

    What exports that were killed left beside it is cleared up first.
    """
    remove_abandoned(out.resolve())
    if out.exists() and not out.is_dir():
        raise DialdownError(f"{out} is a file, and an export is a folder: pass another path.")
    if not (out.is_dir() and any(out.iterdir())):
        return
    if not force:
        raise DialdownError(
            f"The folder {out} is not empty: pass another one, or force (--force) to replace all "
            "that is in it."
        )
    if not ((out / FOLDER).is_dir() or (out / "config.json").is_file()):
        raise DialdownError(
            f"The folder {out} does not hold a model, and force would delete what it holds: "
            "pass another one, or empty it yourself."
        )


def _export(
    base: Checkpoint,
    edit: Intervention,
    out: Path,
    force: bool,
    verify: Verify,
    notes: Mapping[str, Any],
) -> Exported:
    check_notes(notes)
    edit, out, besides = rounded(edit), out.resolve(), _left_out(base)
    with whole_folder(out) as work:
        biased = write_weights(base, edit, work)
        copy_files(base.folder, work)
        _write_config(base, work, biased)
        delta = write_delta(work / FOLDER, edit, base, notes)
        verified = _verify(base, edit, work, verify)
        files = _digests(work)
        write_card(work, delta, base.folder, files, verified, besides)
        check_out(out, force)  # somebody else may have written there meanwhile
    return Exported(out, files, verified, besides)


def _check_base(base: Checkpoint, out: Path, verify: Verify) -> None:
    """Refuse a base in the way of the export, or too large for this machine."""
    out = out.resolve()
    homes = {"base model": base.folder, "working directory": Path.cwd(), "home": Path.home()}
    for what, path in homes.items():
        if path.resolve().is_relative_to(out):
            raise DialdownError(
                f"The export cannot replace {out}, which holds the {what}: pass another folder."
            )
    needed = int(1.05 * base.size)
    place = next(path for path in out.parents if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DialdownError(
            f"The export needs {needed / 1e9:.2f} GB and {place} has {free / 1e9:.2f} GB free: "
            "free some space, or pass a folder on another disk."
        )
    if verify:
        _check_memory(base)
    if verify == "vllm":
        check_vllm(base.size, base.dtype)


def _check_memory(base: Checkpoint) -> None:
    return_free_memory()
    numbers = {name: math.prod(base.tensors[name].shape) for name in base.weights}
    # Down projections are held in float32, and one module at a time is widened to it.
    width = min(4, base.dtype.itemsize)
    downs = sum(math.prod(down.shape) for down in base.downs)
    needed = width * sum(numbers.values()) + (4 - width) * downs + 4 * max(numbers.values())
    free = psutil.virtual_memory().available
    if free < needed:
        raise DialdownError(
            f"Verification loads {base.name}, which needs {needed / 1e9:.2f} GB of memory, and "
            f"{free / 1e9:.2f} GB are free: leave it out here (--no-verify, or verify=False), or "
            "export where there is more memory."
        )


def _write_config(base: Checkpoint, work: Path, biased: bool) -> None:
    """The base's own file, unless it lacks the biases or names a folder of the machine that wrote
    it.
    """
    config = dict(base.config)
    if biased:
        # The part that the language model is built from.
        part = dict(config.get("text_config", config), mlp_bias=True)
        config = {**config, "text_config": part} if "text_config" in config else part
    if is_local_path(str(config.get("_name_or_path", ""))):
        del config["_name_or_path"]
    if config == base.config:
        shutil.copyfile(own_file(base.folder, CONFIG), work / CONFIG)
    else:
        write_json(work / CONFIG, config)


def _verify(
    base: Checkpoint, edit: Intervention, folder: Path, verify: Verify
) -> Verification | None:
    if not verify:
        return None
    return verify_export(base, edit, folder, vllm=verify == "vllm")


def _left_out(base: Checkpoint) -> tuple[str, ...]:
    return left_out(base.folder) if base.local else ()


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of every file but the card, by its path in the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / CARD)
    return {str(path.relative_to(folder)): file_sha256(path) for path in paths}
