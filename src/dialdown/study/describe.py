"""Every setting with its value and what it is, as `dialdown config` prints them."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from ..errors import DialdownError, nearest
from .config import Config

# One attribute, or several of one meaning, in the `Attributes:` of a class.
_ENTRY = re.compile(r"^    (\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", re.MULTILINE)
WIDTH = 96


class Setting(NamedTuple):
    """A setting by its dotted key, as in `--set KEY=VALUE`; the value is None where none is set."""

    key: str
    value: Any
    text: str


def listed(config: Config) -> Iterator[Setting]:
    """All settings with their values in `config`: those without a section first."""
    sections = []
    for name, text in _documented(Config).items():
        value = getattr(config, name)
        if is_dataclass(value):
            sections.append((name, value))
        else:
            yield Setting(name, value, text)
    for section, values in sections:
        documented = _documented(type(values))
        for field in fields(values):
            # One seed serves all stages, so the sections' own cannot be set.
            if field.name != "seed":
                key = f"{section}.{field.name}"
                yield Setting(key, getattr(values, field.name), documented[field.name])


def chosen(config: Config, key: str) -> list[Setting]:
    """The setting of a dotted key, or all of a section."""
    everything = [*listed(config)]
    matching = [
        setting for setting in everything if key in (setting.key, setting.key.rpartition(".")[0])
    ]
    if not matching:
        names = [setting.key for setting in everything]
        raise DialdownError(f"Unknown setting {key!r}: {nearest(key, names)}")
    return matching


def as_toml(settings: list[Setting]) -> str:
    """A TOML file of settings, each under what it is; what is not set stands in a comment."""
    lines, section = [], ""
    for setting in settings:
        head, _, name = setting.key.rpartition(".")
        if head != section:
            section = head
            lines.append(f"[{section}]\n")
        text = setting.text
        text = text[:1].upper() + text[1:] if text[:1].isascii() else text
        lines += textwrap.wrap(
            text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False
        )
        given = setting.value is not None
        lines.append(f"{name} = {_value(setting.value)}\n" if given else f"# {name} =\n")
    return "\n".join(lines)


def _value(value: Any) -> str:
    return json.dumps([*value] if isinstance(value, tuple) else value, ensure_ascii=False)


def _documented(kind: type) -> dict[str, str]:
    """The attributes that a class and its bases document, by name."""
    documented: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if "__doc__" not in base.__dict__ or not (is_dataclass(base) or base is Config):
            continue
        _, _, attributes = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")
        for names, text in _ENTRY.findall(attributes):
            for name in names.split(", "):
                documented[name] = " ".join(text.split())
    return documented
