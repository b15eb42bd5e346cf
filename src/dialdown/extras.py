"""What only an extra installs: which one brings a package, and the sentence where it is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import lazy_loader  # type: ignore[import-untyped]

from .errors import DialdownError

EXTRAS = {
    "study": ("polars", "sklearn", "scipy", "altair", "vl_convert"),
    "train": ("trl", "datasets", "accelerate", "peft"),
    "judge": ("openai",),
    "eval": ("lm_eval",),
    "cluster": ("distributed",),
    "app": ("gradio",),
}
"""The packages of each extra, by the names they are imported under."""


def installing(extra: str) -> str:
    """The clause that says how an extra is installed: from a clone, as no index has the package."""
    return f'run pip install -e ".[{extra}]" in your clone of dialdown'


@contextmanager
def asking_for(what: str = "This", instead: str = "") -> Iterator[None]:
    """Say which extra to install where one of its packages is missing within.

    Args:
        what: what needs it, as the subject of the sentence.
        instead: what could be passed otherwise, if anything can.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        extra = next((extra for extra, names in EXTRAS.items() if name in names), None)
        if extra is None:
            raise
        other = f", or {instead}" if instead else ""
        raise DialdownError(
            f"{what} needs {name}, which is not installed: {installing(extra)}{other}."
        ) from error


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], Any]:
    """`__getattr__`, `__dir__` and `__all__` of a package whose names, listed in its `.pyi`, load
    their module when they are first used, and ask for the extra that it needs. Its subpackages are
    there, too.
    """
    get, listed, names = lazy_loader.attach_stub(package, file)

    def load(name: str) -> Any:
        with asking_for(f"{package}.{name}"):
            if name in names or find_spec(f"{package}.{name}") is None:
                return get(name)
            return import_module(f"{package}.{name}")

    return load, listed, names
