"""What do trained directions say, and did full DPO say it too? `python benchmarks/directions.py
runs/ladder`, on the folder of a `dialdown ladder` with the methods rank_one (or rank_one_attention,
named after the folder) and dpo_kl.

For each layer, what DPO changed in the projection is taken apart (ΔW = Σ σ a bᵀ) and compared
with the trained v uᵀ: the share of the squared change that its first direction holds, how many
directions it has (the participation ratio of σ²), |cos| of v to a and of u to b of the first one,
and the tokens of what the layer writes on average, by the logit lens. Two random directions have
|cos| = √(2/πd) on average.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import dialdown as dd
from dialdown.evaluation.bootstrap import estimate
from dialdown.files import read_json
from dialdown.models.sites import projections
from dialdown.study import Config
from dialdown.study.context import Workspace
from dialdown.study.gains import held_texts
from dialdown.study.ladder_methods import FOLDER
from dialdown.study.rank_one import mean_inputs, rank_one_layers

COLUMNS = ("first", "directions", "|cos v|", "|cos u|")


def compared(
    before: torch.Tensor, after: torch.Tensor, u: np.ndarray, v: np.ndarray
) -> list[float]:
    """A layer's change of (d, F) columns against u (F,) and v (d,); see `COLUMNS`."""
    left, sizes, right = torch.linalg.svd((after - before).double(), full_matrices=False)
    squares = sizes.square()
    return [
        float(squares[0] / squares.sum()),
        float(squares.sum().square() / squares.square().sum()),
        abs(float(left[:, 0] @ torch.tensor(v / np.linalg.norm(v)))),
        abs(float(right[0] @ torch.tensor(u / np.linalg.norm(u)))),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("method", nargs="?", default="rank_one", help="or rank_one_attention")
    given = parser.parse_args()
    work = Workspace(Config(**read_json(given.folder / "run.json")["config"]), given.folder)
    tuned = work.tuned_model(f"{FOLDER}/dpo_kl")
    edit = dd.Intervention.load(given.folder / FOLDER / f"{given.method}.safetensors")
    assert edit.rank_one is not None
    site = edit.rank_one.site
    layers = [
        compared(base.columns, after.columns, u, v)
        for base, after, u, v in zip(
            projections(work.lm, site),
            projections(tuned, site),
            edit.rank_one.reads,
            edit.rank_one.writes,
            strict=True,
        )
    ]
    means = mean_inputs(work.lm, held_texts(work), site)
    readings = rank_one_layers(work.lm, edit, means, work.probe("strict"))
    for numbers, reading in zip(layers, readings.iter_rows(named=True), strict=True):
        shown = "  ".join(f"{number:.3g}" for number in numbers)
        place = f"{reading['layer']:3d}  {shown}  cos probe {reading['cosine']:+.2f}"
        print(f"{place}  {reading['writes']}")
    for name, values in zip(COLUMNS, np.transpose(layers), strict=True):
        print(f"{name}: {estimate(values)}, highest {values.max():.3g}")
    print(f"random directions: {np.sqrt(2 / np.pi / work.lm.view.d_model):.3f}")


if __name__ == "__main__":
    main()
