"""How far long work is: the work says so, and whoever wants to know listens.

    with progress_to(lambda what, done, total: print(f"{what}: {done} of {total}")):
        means = dd.mean_activations(lm, prompts)

A notebook shows a bar by itself; elsewhere nothing is said unless somebody listens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Progress = Callable[[str, int, int], None]
"""Called with what is going on, how many units are done, and how many there are."""


def progress(what: str, done: int, total: int) -> None:
    """Tell whoever listens that `done` of `total` units of `what` are done."""
    listener()(what, done, total)


@contextmanager
def progress_to(listening: Progress) -> Iterator[None]:
    """Let `listening` hear of all work inside the context, in this thread."""
    token = _listener.set(listening)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def silently() -> Iterator[None]:
    """Work inside is a part of what is told of already, and nobody hears of it by itself."""
    with progress_to(_ignore):
        yield


def listener() -> Progress:
    """Who listens here, for a thread that tells in place of this one."""
    return _listener.get() or (_show_bar if _in_notebook() else _ignore)


_listener: ContextVar[Progress | None] = ContextVar("listener", default=None)
_bars: list[Any] = []


def _ignore(what: str, done: int, total: int) -> None:
    pass


def _show_bar(what: str, done: int, total: int) -> None:
    """One bar in a notebook, which goes when the work is done."""
    from tqdm.auto import tqdm

    bar = _bars.pop() if _bars else tqdm(leave=False)
    bar.set_description_str(what, refresh=False)
    bar.total, bar.n = total, done
    bar.refresh()
    if done < total:
        _bars.append(bar)
    else:
        bar.close()


def _in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None
