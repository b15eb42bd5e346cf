"""Folders of one's own machine, which are nobody else's business: what is published names them by
their last part.
"""

from __future__ import annotations

import os
import re
from typing import Any

RUNS = "runs"
"""Where commands write whose folder is not named."""

# A path of at least two parts inside a sentence, after a space, a bracket, a quote or a sign.
IN_TEXT = re.compile(
    r"(?<![^\s\"'`(\[{<=,;])(?:~|\.{1,2}|[A-Za-z]:|)[/\\][^\s\"'`)\]}>,;]*[/\\][^\s\"'`)\]}>,;]+"
)


def is_local_path(text: str) -> bool:
    """Whether a text names a place on this machine or its writer's; a hub id does not."""
    if text.startswith(("/", "~/", "./", "../", "\\")) or re.match(r"[A-Za-z]:[/\\]", text):
        return True
    return "/" in text and "\n" not in text and os.path.exists(text)


def is_no_hub_id(text: str) -> bool:
    """Whether a text cannot be the id of a hub's repository, `name` or `owner/name`: what it names
    is on this machine, or nowhere.
    """
    return is_local_path(text) or text.count("/") > 1


def without_paths(value: Any) -> Any:
    """A JSON value with every local path in it replaced by its last part."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(without_paths, value))
    if not isinstance(value, str):
        return value
    return (
        _last_part(value)
        if is_local_path(value)
        else IN_TEXT.sub(lambda path: _last_part(path[0]), value)
    )


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
