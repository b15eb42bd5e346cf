"""An edit without the model: two small files that `dialdown apply` puts on the base again.

`edit.safetensors` is the intervention, `edit.json` says which base it was made for (name, revision,
and a sha256 over its weights), at which strength, by which version, and what was noted. Every
exported folder carries the pair in its `dialdown` folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    TypeAdapter,
    ValidationError,
    with_config,
)
from typing_extensions import TypedDict

from .. import __version__
from ..cards import card
from ..data.local_paths import without_paths
from ..errors import DialdownError, nearest
from ..files import SCHEMA, file_sha256, write_json
from ..interventions.edit_file import damaged, first_problem
from ..interventions.intervention import Intervention
from ..models.templates import Template
from .checkpoint import Checkpoint, open_checkpoint

FOLDER = "dialdown"
EDIT = "edit.safetensors"
RECORD = "edit.json"
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

Interval = tuple[FiniteFloat, FiniteFloat, FiniteFloat]
"""A mean and the two ends of its 95 % interval."""


@with_config(ConfigDict(extra="forbid"))
class MeasuredRow(TypedDict, total=False):
    """One row of the table of what was measured: a model or a control (METHOD §6)."""

    name: str
    toxicity: Interval
    log_perplexity: Interval
    kl: Interval
    degenerate: Interval
    refusal: Interval
    groups: Interval


@with_config(ConfigDict(extra="forbid"))
class Notes(TypedDict, total=False):
    """What a caller adds to the card and to edit.json, all of it optional.

    `why` is a sentence on what the edit is for; `rows` what was measured, base first; `judge` the
    scorer that gave the toxicity; `caveat` what its figures do not say; `text` what log-perplexity
    and KL were measured on; `template` what the prompts were, as `LM.template`.
    """

    why: str
    rows: list[MeasuredRow]
    judge: str
    caveat: str
    text: str
    template: Template


STRICT = ConfigDict(strict=True, extra="forbid")


class _Base(BaseModel):
    model_config = STRICT
    name: Annotated[str, Field(min_length=1)]
    revision: str | None
    local: bool
    sha256: Sha256


class _Record(BaseModel):
    """All of edit.json."""

    model_config = STRICT
    version: Literal[SCHEMA] = Field(alias="schema")  # type: ignore[valid-type]
    kind: Literal["delta"]
    base: _Base
    edit: dict[str, Any]
    strength: FiniteFloat
    dialdown: str
    notes: Notes


def check_notes(notes: Mapping[str, Any]) -> None:
    """Refuse notes the card would not show."""
    for key in notes:
        if key not in Notes.__annotations__:
            raise DialdownError(f"Unknown note {key!r}: {nearest(key, Notes.__annotations__)}")
    try:
        TypeAdapter(Notes).validate_python(dict(notes))
    except ValidationError as error:
        raise DialdownError(
            f"The notes cannot be shown on a model card ({first_problem(error)}): pass texts, and "
            "rows of a name, toxicity, log_perplexity, kl, degenerate, refusal and groups, "
            "each figure its mean and the two ends of its interval, three finite numbers."
        ) from error


@dataclass(frozen=True, eq=False)
class Delta:
    """An edit and the base it belongs to.

    Attributes:
        edit: the intervention.
        record: all of edit.json: base, edit, strength, version and notes.
    """

    edit: Intervention
    record: dict[str, Any]

    def __repr__(self) -> str:
        return f"Delta({self.edit!r} for {self.base})"

    def _repr_html_(self) -> str:
        facts = {
            "base": self.base,
            "revision": self.revision,
            "sha256 of its weights": self.sha256[:12],
            **self.record["edit"],
            "strength": self.record["strength"],
            **self.record["notes"],
        }
        return card("Delta: an edit without its model", facts)

    @property
    def base(self) -> str:
        """What the base is called (see `Checkpoint`)."""
        return str(self.record["base"]["name"])

    @property
    def revision(self) -> str | None:
        """The base's hub commit, or None."""
        revision: str | None = self.record["base"]["revision"]
        return revision

    @property
    def sha256(self) -> str:
        """Of the base's weights (see `Checkpoint.sha256`)."""
        return str(self.record["base"]["sha256"])


def rounded(edit: Intervention) -> Intervention:
    """The edit as it is stored and exported: where it needs no bias, its numbers in float32, a
    relative change below 1e-7.

    Rounding before the export keeps the exported weights and the delta the same edit, bit for bit.
    An edit with offsets or a vector, and numbers that float32 does not hold, stay as they are.
    """
    if edit.needs_bias:
        return edit
    further = edit.rank_one
    if further is not None:
        reads, writes = map(_short, (further.reads, further.writes))
        further = replace(further, reads=reads, writes=writes)
    outputs = edit.outputs and replace(edit.outputs, gain=_short(edit.outputs.gain))
    return replace(edit, gain=_short(edit.gain), rank_one=further, outputs=outputs)


def _short(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        short = numbers.astype(np.float32).astype(np.float64)
    return short if np.allclose(short, numbers, rtol=1e-7, atol=0) else numbers


def save_delta(
    edit: Intervention,
    source: str | os.PathLike[str],
    folder: str | Path,
    *,
    revision: str | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Delta:
    """Write the delta of an edit, two files in a folder, for a base that is read for its sha256.

    Args:
        edit: the edit (see `rounded` for what is stored).
        source, revision: the base (see `checkpoint.locate`).
        folder: where the two files go.
        notes: kept in edit.json (see `Notes`).
    """
    check_notes(notes or {})
    base = open_checkpoint(source, revision=revision)
    edit.check_foldable(base.skeleton)
    return write_delta(Path(folder), edit, base, notes or {})


def write_delta(
    folder: Path, edit: Intervention, base: Checkpoint, notes: Mapping[str, Any]
) -> Delta:
    """Write the two files of a delta whose base is open."""
    edit = rounded(replace(edit, name=without_paths(edit.name), record=without_paths(edit.record)))
    edit.save(folder / EDIT)
    names = ("name", "revision", "local", "sha256")
    record = {
        "schema": SCHEMA,
        "kind": "delta",
        "base": {name: getattr(base, name) for name in names},
        "edit": _described(edit, folder / EDIT),
        "strength": edit.record.get("strength", 1.0),
        "dialdown": __version__,
        "notes": without_paths(dict(notes)),
    }
    write_json(folder / RECORD, record)
    return Delta(edit, record)


def _described(edit: Intervention, path: Path) -> dict[str, Any]:
    """What edit.json says of the edit beside it."""
    facts = {"name": edit.name, "kind": edit.kind, "neurons": edit.neurons}
    return {**facts, "sha256": file_sha256(path)}


def load_delta(folder: str | Path) -> Delta:
    """Read a delta: the folder of the two files, or an exported folder that carries them.

    Raises:
        DialdownError: there is none, it is of a newer schema, or one of its files is damaged or of
            another delta.
    """
    folder = Path(folder)
    if not folder.exists():
        raise DialdownError(
            f"{folder} is not there: make it with `dialdown detox MODEL --out {folder}`, or pass "
            "the folder of a delta or one that dialdown exported."
        )
    if not (folder / RECORD).is_file():
        folder = folder / FOLDER
    if not (folder / RECORD).is_file():
        raise DialdownError(
            f"{folder.parent} holds no delta ({RECORD} and {EDIT}): pass the folder of a delta, or "
            "a folder dialdown exported."
        )
    try:
        text = (folder / RECORD).read_bytes()
        checked = _Record.model_validate_json(text)
    except OSError as error:
        raise DialdownError(
            f"{folder / RECORD} cannot be read ({error.strerror}): pass a delta you may read."
        ) from error
    except ValidationError as error:
        raise damaged(folder / RECORD, first_problem(error)) from error
    if not (folder / EDIT).is_file():
        raise DialdownError(
            f"{folder} has {RECORD} and no {EDIT}: fetch the delta again, both of its files."
        )
    edit = Intervention.load(folder / EDIT)
    described = {**checked.edit, "strength": checked.strength}
    facts = {**_described(edit, folder / EDIT), "strength": edit.record.get("strength", 1.0)}
    if wrong := sorted(
        key for key in described.keys() | facts if described.get(key) != facts.get(key)
    ):
        raise DialdownError(
            f"{folder / EDIT} is not the edit that {RECORD} describes (not its "
            f"{', '.join(wrong)[:100]}): fetch the delta again, both of its files."
        )
    return Delta(edit, json.loads(text))


def base_of(
    delta: Delta, given: str | os.PathLike[str] | None = None, *, revision: str | None = None
) -> Checkpoint:
    """Open the base of a delta, or another copy of it, and check that it is the same one.

    Args:
        delta: the delta.
        given: where the base is; by default where the delta says, which only a hub id or an
            embedded name can.
        revision: of the base that is given.
    """
    if given is None:
        if delta.record["base"]["local"]:
            raise DialdownError(
                f"The delta was made for a local folder called {delta.base!r}, which its name "
                "alone does not find: pass the folder as base (--base)."
            )
        # The recorded revision belongs to the recorded name; another name has its own.
        given, revision = delta.base, delta.revision
    base = open_checkpoint(given, revision=revision)
    if base.sha256 != delta.sha256:
        raise DialdownError(
            f"{base.name} is not the base this delta was made for: its weights have sha256 "
            f"{base.sha256[:12]} and those of {delta.base} had {delta.sha256[:12]}, so pass that "
            "base, in the dtype and revision it had."
        )
    return base
