"""No file is longer than can be read at once, and no function longer than a screen."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_modules_and_functions_are_short() -> None:
    longer = []
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > 400:
            longer.append(path.name)
        if ROOT / "src" in path.parents:
            longer += [f"{path.name}: {name}" for name in _long(text)]
    assert longer == []


def _long(text: str) -> list[str]:
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    return [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 60]
