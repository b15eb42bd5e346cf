"""The README.md of an exported folder: what was edited and why, what was measured, how to check it
and how to undo it. Its text is in `card.md`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub import ModelCardData, metadata_load
from jinja2 import Environment, PackageLoader

from ..data.catalogue import ASSETS
from ..data.model_files import is_own
from ..files import write_text
from ..interventions.intervention import Intervention
from ..interventions.rank_one import RankOne
from ..terminal import printable
from .delta import Delta
from .verify import Verification

CARD = "README.md"
LICENCE = ("license", "license_name", "license_link")
# What Markdown and HTML read as something else than a letter; some only where a line begins.
MARKUP = re.compile(r"[\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w)|^[-+=#]|(?<=^\d)[.)]|(?<=^\d\d)[.)]")
# What writes, by which projection, and what that reads.
SITES = {
    "mlp": ("MLP", "down", "neurons"),
    "attention": ("attention", "output", "channels of its heads"),
}
FIGURES = {
    "toxicity": "toxicity",
    "log_perplexity": "log perplexity",
    "kl": "KL(base ‖ model)",
    "degenerate": "degenerate",
    "refusal": "refusals",
    "groups": "names a group of people",
}


def write_card(
    folder: Path,
    delta: Delta,
    base_folder: Path,
    files: Mapping[str, str],
    verified: Verification | None,
    left_out: Sequence[str] = (),
) -> None:
    """Write README.md.

    Args:
        folder: the exported folder.
        delta: the edit and its base; its notes follow `Notes`.
        base_folder: the base's folder, whose README.md gives the licence where it has one.
        files: sha256 of every other file, by its path in the folder.
        verified: what verification measured, or None where it was left out.
        left_out: what the base's folder has besides.
    """
    licence = _licence(delta, base_folder)
    on_the_hub = not (delta.record["base"]["local"] or delta.base.startswith("embedded:"))
    head = ModelCardData(
        # What the hub links to, so no other name: with a colon in it, it refuses the card.
        base_model=_one_line(delta.base) if on_the_hub else None,
        library_name="transformers",
        tags=["dialdown"],
        **(licence or {}),
    )
    notes = delta.record["notes"]
    rows = notes.get("rows", [])
    figures = {key: word for key, word in FIGURES.items() if any(key in row for row in rows)}
    markdown = Environment(
        loader=PackageLoader("dialdown", "exporting"), trim_blocks=True, keep_trailing_newline=True
    )
    markdown.filters |= {"plain": _plain, "code": _code}
    text = markdown.get_template("card.md").render(
        head=head.to_yaml(),
        delta=delta,
        what=_what(delta),
        notes=notes,
        rows=rows,
        figures=figures,
        files=files,
        verified=verified,
        licence=licence,
        left_out=left_out,
    )
    write_text(folder / CARD, text)


def _licence(delta: Delta, base_folder: Path) -> dict[str, Any] | None:
    """What is known of the base's licence, or None where it could not be read.

    Of an embedded model it is known here, of others from the front matter of their own card.
    """
    if delta.base.startswith("embedded:"):
        return {"license": ASSETS[delta.base.removeprefix("embedded:")].licence}
    card = base_folder / CARD
    if not card.is_file():
        return {}
    try:
        head = (metadata_load(card) or {}) if is_own(card, base_folder) else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    if head is None:
        return None
    stated = {key: head[key] for key in LICENCE if head.get(key) is not None}
    sound = all(isinstance(value, str) and value.isprintable() for value in stated.values())
    return stated if sound else None


def _what(delta: Delta) -> str:
    """The first sentence: what the edit does, a clause for each of its parts."""
    edit, strength = delta.edit, delta.record["strength"]
    clauses = []
    if edit.rank_one is not None:
        clauses.append(_written(edit.rank_one))
    if edit.outputs is not None:
        clauses.append(
            f"maps {edit.outputs.moved:,} of the {edit.outputs.gain.size:,} "
            f"outputs of {len(edit.outputs.widths)} linear layers or norms, each by one factor on "
            "its row of the weight and on its bias, to which a shift is added"
        )
    if edit.vector is not None:
        norm = float(np.linalg.norm(edit.vector))
        clauses.append(
            f"adds one vector of norm {norm:.4g} to the final-layer residual stream (the bias of "
            "the last MLP)"
        )
    if not clauses:
        clauses = [f"({edit.kind}) {_changed(edit)}"]
    elif (edit.gain != 1).any() or edit.offset.any():
        clauses.insert(0, _changed(edit))
    text = f"{_code(edit.name)} {'; it also '.join(clauses)}"
    if strength != 1:
        text += f", dialled to {strength:.3g} times what was found at first"
    return text + ". Everything else is the base model's, byte for byte."


def _changed(edit: Intervention) -> str:
    """What is done to single neurons."""
    changed = int(((edit.gain != 1) | (edit.offset != 0)).sum())
    text = f"changes {changed:,} of {edit.gain.size:,} MLP neurons"
    if (edit.gain != 1).any() and not edit.offset.any():
        text += (
            ", each by one factor on its column of the down projection; mean |gain - 1| is "
            f"{abs(edit.gain - 1).mean():.4f}"
        )
    return text


def _written(rank_one: RankOne) -> str:
    """What layers write besides."""
    read, layers = rank_one.inputs_read, len(rank_one.layers)
    writer, projection, inputs = SITES[rank_one.site]
    count = len(rank_one.of(0)[0])
    many, rank = ("one direction", "one") if count == 1 else (f"{count} directions", str(count))
    where = "each" if layers == len(read) else f"{layers}"
    return (
        f"adds {many} to what the {writer} in {where} of the "
        f"{len(read)} layers writes: a matrix of rank {rank} on the {projection} projection, "
        f"which reads {int(read.sum()):,} of {read.size:,} {inputs} with {rank} number"
        f"{'s' * (count > 1)} each"
    )


def _plain(text: str) -> str:
    """A text as one line that Markdown shows as it is: no control characters, no markup."""
    return MARKUP.sub(r"\\\g<0>", _one_line(text))


def _code(text: str) -> str:
    return f"`{_one_line(text).replace('`', chr(39))}`"


def _one_line(text: str) -> str:
    """A text without line breaks and what would act instead of being shown."""
    return " ".join(printable(text).split())
