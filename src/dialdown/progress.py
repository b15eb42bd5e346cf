"""How long work reports its progress."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

Progress = Callable[[str, int, int], None]
"""Called with what is going on, how many units are done, and how many there are."""


def silent(what: str, done: int, total: int) -> None:
    """Say nothing."""


def with_bar(function: Callable[P, R]) -> Callable[P, R]:
    """A function that shows a bar where it is called in a notebook without a `progress` of its
    own, and says nothing elsewhere.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if kwargs.get("progress") is not None or not _in_notebook():
            return function(*args, **kwargs)
        from tqdm.auto import tqdm

        with tqdm(leave=False) as bar:
            return function(*args, **{**kwargs, "progress": _moving(bar)})  # type: ignore[arg-type]

    return call


def _moving(bar: Any) -> Progress:
    def move(what: str, done: int, total: int) -> None:
        bar.set_description_str(what, refresh=False)
        bar.total, bar.n = total, done
        bar.refresh()

    return move


def _in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None
