"""Metrics beside those of every row, one's own among them: a number for each continuation, that a
row has with its interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np

from ..errors import DialdownError
from ..models.refusals import declines
from .groups import GroupMentions
from .plugin import own
from .row import REFUSAL, RESERVED


class Metric(Protocol):
    """What measures continuations beside what every row is measured with."""

    @property
    def name(self) -> str:
        """The key of its mean in a row's `metrics`."""

    def measure(self, prompts: Sequence[str], continuations: Sequence[str]) -> Sequence[float]:
        """One value per continuation, in order; NaN where it has none, which a mean leaves out."""


class Refusals:
    """The share of replies that decline (`declines`), where prompts are turns of a template."""

    name = REFUSAL

    def measure(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[float]:
        """1 for each reply that declines, else 0."""
        return [float(declines(reply)) for reply in continuations]


def load_metric(source: str) -> Metric:
    """The metric `embedded:groups` (see `groups`), or `package.module:name`: an object, or a class
    or function that makes one.

    Raises:
        DialdownError: it cannot be fetched or imported, or is not a metric.
    """
    if source == "embedded:groups":
        return GroupMentions()
    return cast(Metric, own(source, "metric", ("name", "measure")))


def check_names(metrics: Sequence[Metric]) -> None:
    """Refuse metrics whose means would stand under another's name."""
    taken = set(RESERVED)
    for metric in metrics:
        if metric.name in taken or "/" in metric.name:
            raise DialdownError(
                f"A metric cannot be called {metric.name!r}, which a row has already or which has "
                "a slash: give it another name."
            )
        taken.add(metric.name)


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
