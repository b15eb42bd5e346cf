"""What the settings of a study's models stand for here and now."""

from __future__ import annotations

import re
from typing import Any

from ..data.model_files import CONFIG
from ..errors import DialdownError
from ..exporting.checkpoint import locate
from .config import Config
from .memory import device_name

COMMIT = re.compile("[0-9a-f]{40}")


def standing(config: Config) -> dict[str, Any]:
    """The commit behind a hub id, the kind of device, and the dtype where the checkpoint does not
    say it: what a study goes on with, or is another one.

    The hub is asked where it can be reached, as loading does; else its cache knows.
    """
    kind = device_name(config).partition(":")[0]
    dtype = config.dtype or ("float32" if kind == "cpu" else None)
    stands: dict[str, Any] = {"device": kind, "dtype": dtype, "revision": _commit(config)}
    if config.tuned is not None and (commit := _commit_of(config.tuned)):
        stands["tuned"] = f"{config.tuned}@{commit}"
    return stands


def pinned(config: Config) -> Config:
    """The settings with the commit of the model, for all stages and workers the same one."""
    return config.model_copy(update={"revision": _commit(config)})


def _commit(config: Config) -> str | None:
    if config.revision is not None and COMMIT.fullmatch(config.revision):
        return config.revision
    return _commit_of(config.model, config.revision) or config.revision


def _commit_of(source: str, revision: str | None = None) -> str | None:
    """The commit of a hub id; None of a folder, whose files count themselves."""
    if source.startswith("embedded:"):
        return None
    try:
        return locate(source, revision, patterns=(CONFIG,))[2]
    except DialdownError:
        # Loading the model says what is wrong.
        return None
