"""A neuron table of Llama-3.1-8B's size, computed, grouped, ranked and drawn: `python
benchmarks/scale.py`.

32 x 14,336 neurons with made-up means and cosines (the forward passes that would give real ones are
not what is timed). Prints the seconds of each step and the peak memory of the process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dialdown import NeuronTable, edit, patch
from dialdown.neurons import statistics
from dialdown.report import neuron_tables as tables
from dialdown.report.drawing import save
from dialdown.report.figures import PAPER_FIGURES
from dialdown.workers import peak_bytes

LAYERS, NEURONS = 32, 14_336


def synthetic() -> NeuronTable:
    """A compared table with small shifts of small means, as tuning leaves them."""
    rng = np.random.default_rng(0)
    size = LAYERS * NEURONS
    layer = np.arange(size) // NEURONS
    cosine, base = rng.normal(0, 0.02, size), rng.normal(0, 0.05, size)
    tuned = base + rng.normal(0, 0.001, size) * (1 + layer / LAYERS)
    columns = {
        "cosine": cosine,
        "mean_base": base,
        "mean_tuned": tuned,
        "projection_base": base * cosine,
        "projection_tuned": tuned * cosine,
        "projection_change": (tuned - base) * cosine,
        "value_cosine": 1 - rng.gamma(1, 1e-6, size),
    }
    record = {"protocol": "strict", "direction": {"name": "probe"}, "base": {"model": "synthetic"}}
    return NeuronTable(
        {name: values.reshape(LAYERS, NEURONS) for name, values in columns.items()}, record
    )


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long the block took."""
    start = time.perf_counter()
    yield
    print(f"{what:44} {time.perf_counter() - start:6.2f} s")


def main() -> None:
    """Do everything once."""
    print(date.today(), f"{LAYERS * NEURONS:,} neurons")
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        with timed("table and groups"):
            table = synthetic()
        with timed("written as Parquet and read again"):
            table.save(Path(folder) / "neurons.parquet")
            table = NeuronTable.load(Path(folder) / "neurons.parquet")
        with timed("statistics: tables 4, 5, 13, 17, 18, 5.1"):
            for make in (
                tables.table_4_group_roles,
                tables.table_5_group_shares,
                tables.table_13_negative_means,
                tables.table_17_correlations,
                tables.table_18_reducing_share,
                tables.section_5_1_shifts,
            ):
                make(table)
            statistics.opposing_effects(table)
        with timed("ranked: toxic neurons, patch and edit"):
            patch(table, "toxic_256")
            patch(table, "four_groups")
            edit(table, alpha=0.5, beta=0.3)
        with timed("figures 1 to 8, as SVG, PNG and PDF"):
            for name, (*_, draw) in PAPER_FIGURES.items():
                save(draw(table), Path(folder) / name)
    print(
        f"{'all':44} {time.perf_counter() - start:6.2f} s, peak memory "
        f"{(peak_bytes() or 0) / 2**30:.2f} GiB"
    )


if __name__ == "__main__":
    main()
