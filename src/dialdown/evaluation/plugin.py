"""A scorer or a metric of one's own, named in a config as `package.module:name`."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from ..errors import DialdownError

# Not `embedded:name`, nor a path or a hub id.
NAMED = re.compile(r"(?!(?:embedded|openai):)[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def own(source: str, what: str, attributes: tuple[str, ...]) -> Any:
    """What `package.module:name` is, or returns as a class or function without arguments."""
    if not NAMED.fullmatch(source):
        raise DialdownError(
            f"{source!r} names no {what}: write package.module:name of something that Python finds "
            "from here."
        )
    module, _, name = source.partition(":")
    try:
        target = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DialdownError(
            f"The {what} {source!r} cannot be imported ({error}): write package.module:name of "
            "something that Python finds from here, for example by PYTHONPATH."
        ) from error
    # An object that can be called may be the thing itself.
    ready = all(hasattr(target, attribute) for attribute in attributes) and not isinstance(
        target, type
    )
    value = target() if callable(target) and not ready else target
    if missing := [attribute for attribute in attributes if not hasattr(value, attribute)]:
        raise DialdownError(
            f"{source!r} is not a {what}, because it has no {missing[0]}: give it "
            f"{', '.join(attributes)}, as dialdown.evaluation.{what.title()} says."
        )
    return value
