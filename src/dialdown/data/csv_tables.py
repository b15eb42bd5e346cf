"""Tables as CSV files, which a spreadsheet shows as they are and which are read back equal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from ..files import write_atomic

# How a cell begins that a spreadsheet takes for a formula; one that begins so after apostrophes
# gets one more, so that reading takes off what writing put there.
FORMULA = r"'*[=+\-@\t\r]"
NUMBER = r"^[+-]?[0-9.]+(e[+-]?[0-9]+)?$"


def write_csv(frames: Mapping[str, pl.DataFrame], folder: Path) -> None:
    """Write each frame to `folder/NAME.csv`, atomically."""
    for name, frame in frames.items():
        write_atomic(
            folder / f"{name}.csv", frame.with_columns(_harmless(pl.col(pl.String))).write_csv
        )


def read_csv(path: Path) -> pl.DataFrame:
    """A table that `write_csv` wrote. Tokens are text, whatever they look like."""
    # A path is not a pattern, whatever brackets a folder's name has.
    frame = pl.read_csv(
        path, infer_schema_length=None, schema_overrides={"token": pl.String}, glob=False
    )
    return frame.with_columns(pl.col(pl.String).str.replace(f"^'({FORMULA})", "$1"))


def _harmless(cells: pl.Expr) -> pl.Expr:
    """Cells that a spreadsheet would compute, with the apostrophe that shows them instead."""
    return (
        pl.when(cells.str.contains(NUMBER))
        .then(cells)
        .otherwise(cells.str.replace(f"^({FORMULA})", "'$1"))
    )
