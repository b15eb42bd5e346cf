"""CSV files read back as they were, and no cell is a formula."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from dialdown.data.csv_tables import read_csv, write_csv

TEXTS = [
    "=1+1",
    "+cmd",
    "-",
    "-5 %",
    "@x",
    "'=1",
    "''+a",
    "'a",
    "-0.5",
    "1e-3",
    "a=b",
    "",
    "\t=1",
    "-0.1 / 2.0",
    "it's",
    None,
]


def test_a_cell_never_becomes_a_formula_and_is_read_back_as_it_was(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"token": TEXTS, "number": [-1.5] * len(TEXTS), "text": [f"{text}x" for text in TEXTS]}
    )
    write_csv({"t": frame}, tmp_path)
    read = read_csv(tmp_path / "t.csv")
    assert read["token"].to_list() == TEXTS
    assert read["text"].to_list() == frame["text"].to_list()
    assert read["number"].to_list() == frame["number"].to_list()
    cells = pl.read_csv(tmp_path / "t.csv", infer_schema=False)
    for column in ("token", "text"):
        for cell in cells[column]:
            assert not cell or cell[0] not in "=@\t\r"
            assert (
                not cell
                or cell[0] not in "+-"
                or all(float(part) is not None for part in cell.split(" / "))
            )
