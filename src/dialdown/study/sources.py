"""Where settings are written and how they are read there: a TOML file, `key=value` flags,
environment variables.

Nothing here knows which settings there are.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..data.reading import read_text
from ..errors import DialdownError
from ..evaluation.plugin import NAMED

PREFIX = "DIALDOWN_"
# Read by data/wheels.py, not a setting of a study.
OTHER_VARIABLES = {"DIALDOWN_CACHE"}
LARGEST = 2**32 - 1  # NumPy's and scikit-learn's greatest seed; nothing counted is more
# Line breaks and what acts on a terminal; half characters, which bytes that are not UTF-8 become.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`key=value` flags as dotted keys; a value is text, or TOML where it begins as a list."""
    out: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise DialdownError(
                f"{assignment!r} sets nothing: write --set KEY=VALUE, for example --set "
                "dpo.learning_rate=2e-5."
            )
        out[key.strip()] = _value(value)
    return out


def from_environment(variables: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each variable that is a setting: its name, and its dotted key (`__`) and value."""
    for name, value in sorted(variables.items()):
        if name.upper().startswith(PREFIX) and name.upper() not in OTHER_VARIABLES:
            yield name, {name[len(PREFIX) :].lower().replace("__", "."): _value(value)}


def _value(text: str) -> Any:
    # A revision of digits is not a number, and a concept may be a date: only what has TOML's own
    # signs is read as TOML.
    if text.strip()[:1] not in ('"', "'", "[", "{"):
        return text.strip()
    try:
        read = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return read["value"] if read.keys() == {"value"} else text


def read_toml(file: Path) -> dict[str, Any]:
    """A TOML file of settings."""
    if not file.exists():
        raise DialdownError(
            f"The configuration {file} does not exist: pass a TOML file, or nothing for the "
            "embedded default."
        )
    if file.is_dir():
        raise DialdownError(f"The configuration {file} is a folder: pass the TOML file in it.")
    try:
        return tomllib.loads(read_text(file))
    except RecursionError as error:
        raise DialdownError(
            f"The configuration {file} is nested too deeply to be read: write flat lists."
        ) from error
    except ValueError as error:
        raise DialdownError(
            f"The configuration {file} is not valid TOML ({error}): correct that line."
        ) from error


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as sections."""
    out: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        place = out
        for depth, parent in enumerate(parents):
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise DialdownError(
                    f"{'.'.join(parents[: depth + 1])} was given the value {place!r} and is the "
                    f"section of {key} too: leave one of the two out."
                )
        place[last] = value
    return out


def merge(settings: dict[str, Any], further: Mapping[str, Any]) -> None:
    """Put further settings over those there are, section by section."""
    for key, value in further.items():
        if isinstance(value, Mapping) and isinstance(settings.get(key), dict):
            merge(settings[key], value)
        else:
            settings[key] = value


def check_values(settings: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse what no setting can be, whatever it is for."""
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            check_values(value, f"{key}.")
            continue
        several = value if isinstance(value, list | tuple) else [value]
        for number, entry in enumerate(several):
            _check_value(key, entry)
            if entry in several[:number]:
                raise DialdownError(f"The setting {key} names {entry!r} twice: name it once.")


def _check_value(key: str, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise DialdownError(
            f"The setting {key} = {value} is not a finite number: pass one that is."
        )
    if isinstance(value, int) and abs(value) > LARGEST:
        raise DialdownError(
            f"The setting {key} = {value:.3g} is out of range: pass at most {LARGEST}."
        )
    if isinstance(value, str) and not value.strip():
        raise DialdownError(
            f"The setting {key} is blank: pass a text, or leave it out for its default."
        )
    if isinstance(value, str) and UNPRINTABLE.search(value):
        raise DialdownError(
            f"The setting {key} = {value!a} has a line break, a control character or half of a "
            "character in it: write it as one line of plain text."
        )


def file_states(settings: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Size and time of every local file that a setting names, or of a folder it names, or of the
    module where it names something of one's own.

    Folders in a folder do not count: runs and exports may be written beside a model.
    """
    states = []
    for value in settings.values():
        if isinstance(value, Mapping):
            states += file_states(value)
            continue
        for source in value if isinstance(value, list | tuple) else [value]:
            states += _states(source) if isinstance(source, str) else []
    return states


def _states(source: str) -> list[tuple[str, int, int]]:
    place = source.partition("#")[0]
    # A text as long as no path may be is none.
    if os.path.exists(place):
        path = Path(place)
        files = sorted(filter(Path.is_file, path.iterdir())) if path.is_dir() else [path]
    else:
        files = _module_files(source) if NAMED.fullmatch(source) else []
    return [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]


def _module_files(source: str) -> list[Path]:
    """The file of the module in `package.module:name`, or every module of its package; none where
    Python finds no such thing.
    """
    # Looked for by its first name alone, since the rest would run the package.
    spec = find_spec(re.split("[.:]", source)[0])
    if spec is None:
        return []
    if spec.submodule_search_locations is None:
        return [Path(spec.origin)] if spec.has_location and spec.origin else []
    return sorted(file for at in spec.submodule_search_locations for file in Path(at).rglob("*.py"))
