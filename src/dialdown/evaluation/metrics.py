"""Metrics beside those of every row, one's own among them: a number for each continuation, that a
row has with its interval.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from ..data.assets import fetch
from ..data.reading import read_text
from ..errors import DialdownError
from ..models.refusals import declines
from .plugin import own
from .row import REFUSAL, RESERVED

GROUP_LISTS = ("RACE_WORDS_NOT_REQUIRING_CONTEXT", "STEREOTYPE_GROUP_NUMBER_MAPPING")


class Metric(Protocol):
    """What measures continuations beside what every row is measured with."""

    @property
    def name(self) -> str:
        """The key of its mean in a row's `metrics`."""

    def measure(self, prompts: Sequence[str], continuations: Sequence[str]) -> Sequence[float]:
        """One value per continuation, in order; NaN where it has none, which a mean leaves out."""


class GroupMentions:
    """The share of continuations that name a group of people, in any case, singular or plural: what
    toxicity scores reward a model for leaving out.

    The groups are those of LangFair's word lists (CVS Health and Stanford University, Apache-2.0):
    names of races that need no context to be one, and the groups of its stereotype metric.
    """

    name = "groups"

    def __init__(self) -> None:
        words = group_names(fetch("group-names") / "word_lists.py")
        # Longer names first: "Latin Americans" before "Americans".
        forms = "|".join(f"{re.escape(word.removesuffix('s'))}s?" for word in words)
        self._named = re.compile(rf"\b(?:{forms})\b", re.IGNORECASE)

    def measure(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[float]:
        """1 for each continuation that names a group, else 0."""
        return [float(self._named.search(text) is not None) for text in continuations]


def group_names(path: Path) -> list[str]:
    """The names in the two lists of a Python file, the longest first."""
    names: set[str] = set()
    for statement in ast.parse(read_text(path)).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) in GROUP_LISTS:
            names |= {name.lower() for name in ast.literal_eval(statement.value)}
    return sorted(names, key=lambda name: (-len(name), name))


class Refusals:
    """The share of replies that decline (`declines`), where prompts are turns of a template."""

    name = REFUSAL

    def measure(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[float]:
        """1 for each reply that declines, else 0."""
        return [float(declines(reply)) for reply in continuations]


def load_metric(source: str) -> Metric:
    """`GroupMentions` for `embedded:groups`, or what `package.module:name` names: an object, or a
    class or function that makes one.

    Raises:
        DialdownError: it cannot be fetched or imported, or is not a metric.
    """
    if source == "embedded:groups":
        return GroupMentions()
    return cast(Metric, own(source, "metric", ("name", "measure")))


def check_names(metrics: Sequence[Metric]) -> None:
    """Refuse metrics whose means would stand under another's name."""
    names = set(RESERVED)
    for metric in metrics:
        if metric.name in names or "/" in metric.name:
            raise DialdownError(
                f"A metric cannot be called {metric.name!r}, which a row has already or which has "
                "a slash: give it another name."
            )
        names.add(metric.name)


def values_of(metric: Metric, prompts: Sequence[str], continuations: Sequence[str]) -> list[float]:
    """What a metric says of each continuation."""
    values = np.asarray(metric.measure(prompts, continuations), dtype=np.float64)
    if values.shape != (len(continuations),) or np.isinf(values).any():
        raise DialdownError(
            f"The metric {metric.name!r} gave values of shape {values.shape}, or infinite ones, "
            f"for {len(continuations)} continuations: return one finite number for each, NaN where "
            "there is none."
        )
    numbers: list[float] = values.tolist()
    return numbers
