"""A scorer of one's own, named in a config: `evaluation.judge = "package.module:name"`."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from ..errors import DialdownError

# Not `embedded:name`, nor a path or a hub id.
NAMED = re.compile(r"(?!embedded:)[A-Za-z_][\w.]*:[A-Za-z_]\w*")
WANTED = ("name", "caveat", "record", "score")


def own_scorer(source: str) -> Any:
    """The object `package.module:name` stands for, or what it returns where it is a class or a
    function without arguments.

    Raises:
        DialdownError: there is no such module or name, or what is there is no scorer.
    """
    module, _, name = source.partition(":")
    try:
        made = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DialdownError(
            f"The scorer {source!r} cannot be imported ({error}): write package.module:name of "
            "something that Python finds from here, for example by PYTHONPATH."
        ) from error
    scorer = made() if callable(made) else made
    if missing := [attribute for attribute in WANTED if not hasattr(scorer, attribute)]:
        raise DialdownError(
            f"{source!r} is no scorer, because it has no {missing[0]}: give it name, caveat, "
            "record and score(texts), as dialdown.evaluation.Scorer says."
        )
    return scorer
