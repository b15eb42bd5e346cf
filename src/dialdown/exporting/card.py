"""The README.md of an exported folder: what was edited and why, what was measured, how to check it
and how to undo it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub import ModelCardData, metadata_load

from ..data.catalogue import ASSETS
from ..data.model_files import is_own
from ..files import write_text
from ..terminal import printable
from .delta import Delta, Interval
from .verify import Verification
from .vllm import VllmCheck

CARD = "README.md"
LICENCE = ("license", "license_name", "license_link")

# What Markdown and HTML read as something else than a letter; some only where a line begins.
MARKUP = re.compile(r"[\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w)|^[-+=#]|(?<=^\d)[.)]|(?<=^\d\d)[.)]")
FIGURES = {"toxicity": "toxicity", "log_perplexity": "log perplexity", "kl": "KL(base ‖ model)"}


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
    local = " --base FOLDER_OF_THE_BASE" if delta.record["base"]["local"] else ""
    notes, revision = (
        delta.record["notes"],
        f" at revision {_code(delta.revision)}" if delta.revision else "",
    )
    licence, unread = _licence(delta, base_folder)
    paragraphs = [
        f"# {plain(delta.base)}, edited by dialdown",
        _what(delta),
        *([plain(notes["why"])] if "why" in notes else []),
        "> This model can still write offensive text. Figures on toxicity, where there are any, "
        "come from prompts chosen "
        "to provoke it, and hold for those.",
        *_measured(notes),
        "## Verified",
        _verified(verified),
        "## The edit alone",
        "`dialdown/edit.safetensors` and `dialdown/edit.json` are the edit without the model. They "
        "put it on another "
        "copy of the base, at any strength:",
        f"```\ndialdown apply THIS_FOLDER --out NEW_FOLDER --strength 0.5{local}\n```",
        f"The base is {_code(delta.base)}{revision}; the sha256 over its weights is "
        f"`{delta.sha256}`, and another base is "
        "refused.",
        *unread,
        "## Files",
        "| file | sha256 |\n| --- | --- |\n"
        + "\n".join(f"| {plain(name)} | `{digest}` |" for name, digest in sorted(files.items())),
        *(
            [f"Not copied from the base's folder: {', '.join(map(plain, left_out))}."]
            if left_out
            else []
        ),
    ]
    data = ModelCardData(
        # A hub id as it is; the other names are not the hub's, and it refuses a card with a colon
        # here.
        base_model=one_line(delta.base.removeprefix("embedded:")),
        library_name="transformers",
        tags=["dialdown"],
        **licence,
    )
    write_text(folder / CARD, f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(paragraphs) + "\n")


def _licence(delta: Delta, base_folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What is known of the base's licence, and a sentence where it could not be read.

    Of an embedded model it is known here, of others from the front matter of their own card.
    """
    if delta.base.startswith("embedded:"):
        return {"license": ASSETS[delta.base.removeprefix("embedded:")].licence}, []
    card = base_folder / CARD
    if not card.is_file():
        return {}, []
    try:
        head = (metadata_load(card) or {}) if is_own(card, base_folder) else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        head = None
    stated = {
        key: value for key, value in (head or {}).items() if key in LICENCE and value is not None
    }
    if head is None or not all(
        isinstance(value, str) and value.isprintable() for value in stated.values()
    ):
        return {}, [
            "The base's README.md could not be read for its licence, which is therefore not "
            "repeated here."
        ]
    return stated, []


def plain(text: str) -> str:
    """A text as one line that Markdown shows as it is: no control characters, no markup."""
    return MARKUP.sub(r"\\\g<0>", one_line(text))


def _code(text: str) -> str:
    return f"`{one_line(text).replace('`', chr(39))}`"


def one_line(text: str) -> str:
    """A text without line breaks and what would act instead of being shown."""
    return " ".join(printable(text).split())


def _what(delta: Delta) -> str:
    edit = delta.edit
    strength = delta.record["strength"]
    if edit.vector is not None:
        norm = float(np.linalg.norm(edit.vector))
        text = (
            f"{_code(edit.name)} adds one vector of norm {norm:.4g} to the final-layer "
            "residual stream (the bias of the last MLP)"
        )
    else:
        changed = (edit.gain != 1) | (edit.offset != 0)
        text = (
            f"{_code(edit.name)} ({edit.kind}) changes {int(changed.sum()):,} of "
            f"{edit.gain.size:,} MLP neurons"
        )
        if edit.gain.size and not edit.offset.any():
            text += (
                ", each by one factor on its column of the down projection; mean |gain - 1| "
                f"is {abs(edit.gain - 1).mean():.4f}"
            )
    if strength != 1:
        text += f", dialled to {strength:.3g} times what was found at first"
    text += ". Everything else is the base model's, byte for byte."
    return text


def _measured(notes: Mapping[str, Any]) -> list[str]:
    rows = notes.get("rows", [])
    if not rows:
        return []
    shown = [figure for figure in FIGURES if any(figure in row for row in rows)]
    lines = [
        "| model | " + " | ".join(FIGURES[figure] for figure in shown) + " |",
        "| --- " * (len(shown) + 1) + "|",
    ]
    for row in rows:
        cells = [_interval(row[figure]) if figure in row else "" for figure in shown]
        lines.append("| " + " | ".join([plain(row.get("name", "")), *cells]) + " |")
    said = [f"Toxicity was scored by {plain(notes['judge'])}."] if "judge" in notes else []
    said += [plain(notes["caveat"])] if "caveat" in notes else []
    if "text" in notes:
        said.append(
            f"Log-perplexity and KL are on {plain(notes['text'])}; on other kinds of text the KL "
            "can be several times that."
        )
    return [
        "## Measured, with 95 % intervals",
        "\n".join(lines),
        *([" ".join(said)] if said else []),
    ]


def _interval(value: Interval) -> str:
    mean, low, high = value
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _verified(verified: Verification | None) -> str:
    if verified is None:
        return "This folder was written without verification."
    text = (
        "This folder was reloaded with plain transformers and compared with the base model under "
        f"the edit's hooks, both in float32: over {verified.positions:,} "
        f"positions of {verified.prompts} texts the largest difference of a logit is "
        f"{verified.difference:.2g}, where {verified.tolerance:.2g} is accepted."
    )
    if verified.rounding is not None:
        text += (
            " The checkpoint has 16 bits: random errors of the size of one rounding in what the "
            f"edit wrote make a difference of {verified.rounding:.2g}, "
            "and four times that plus 0.001 is accepted."
        )
    return text if verified.vllm is None else f"{text} {_in_vllm(verified.vllm)}"


def _in_vllm(check: VllmCheck) -> str:
    return (
        f"So it was with vLLM {check.version}, in float32: of {check.compared:,} log-probabilities "
        "of the likeliest next tokens the largest "
        f"difference is {check.difference:.2g}, where {check.tolerance:.2g} is accepted."
    )
