"""Whether a text names a group of people: what toxicity scores reward a model for leaving out.

The groups are those of LangFair's word lists (CVS Health and Stanford University, Apache-2.0):
names of races that need no context to be one, and the groups of its stereotype metric.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path

from ..data.assets import fetch
from ..data.reading import read_text

LISTS = ("RACE_WORDS_NOT_REQUIRING_CONTEXT", "STEREOTYPE_GROUP_NUMBER_MAPPING")


class GroupMentions:
    """The share of continuations that name a group of people, in any case, singular or plural."""

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
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) in LISTS:
            names |= {name.lower() for name in ast.literal_eval(statement.value)}
    return sorted(names, key=lambda name: (-len(name), name))
