"""Do edits move the neurons that DPO moves? `python benchmarks/agreement.py runs/ladder [--figure
FILE]`, on the folder of a `dialdown ladder` that has tuned a model (`--methods ...,dpo_kl`).

Each method acts at the strength that the ladder dialled it to, and the change of what every neuron
writes on average over unseen prompts (of its activation after the edit) is ranked against the same
change under DPO: Spearman's correlation in each layer, its mean over layers, and the same for DPO's
changes shuffled within the layer. Beside it the share of neurons that move the same way, and how
much each of the four groups moves along the probe in both.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import spearmanr

import dialdown as dd
from dialdown.evaluation.bootstrap import estimate
from dialdown.files import read_json
from dialdown.neurons import Direction
from dialdown.report.chart_style import titled
from dialdown.report.drawing import save
from dialdown.study import Config
from dialdown.study.context import Workspace
from dialdown.study.ladder_methods import FOLDER, LADDER, UNTOUCHED

PROMPTS = 128
SHUFFLES = 20
Grid = NDArray[np.float64]


def shifts(folder: Path) -> tuple[Workspace, Grid, dict[str, Grid]]:
    """The base model's mean activations, and each method's change of them."""
    work = Workspace(Config(**read_json(folder / "run.json")["config"]), folder)
    prompts, settings = work.unseen[:PROMPTS], work.config.evaluation
    rows = {row["method"]: row for row in read_json(folder / "ladder.json")["rows"]}

    def means(lm: dd.LM) -> Grid:
        return dd.mean_activations(
            lm,
            prompts,
            max_new_tokens=settings.max_new_tokens,
            max_prompt_tokens=settings.max_prompt_tokens,
        ).means

    base = means(work.lm)
    changes = {}
    for name, row in rows.items():
        if name == UNTOUCHED:
            continue
        if name in LADDER and LADDER[name].tunes:
            # As it was trained: its interpolation towards the base has no folder.
            changes[name] = means(work.tuned_model(f"{FOLDER}/{name}")) - base
            continue
        place = folder / FOLDER / f"{name.replace(':', '.')}.safetensors"
        if not place.is_file():
            continue  # a control, whose numbers are those of its method
        with dd.Intervention.load(place).at(row["strength"]).applied(work.lm):
            changes[name] = means(work.lm) - base
    return work, base, changes


def correlations(change: Grid, tuned: Grid) -> Grid:
    """(L,) Spearman's correlation of two changes in each layer."""
    return np.array([spearmanr(a, b).statistic for a, b in zip(change, tuned, strict=True)])


def by_group(work: Workspace, base: Grid, change: Grid, probe: Direction) -> dict[str, float]:
    """How far each group moves along the probe, as a share of all that falls."""
    dots = np.stack(
        [
            layer.multiplier * (layer.value_vectors().double().cpu().numpy() @ probe.unit)
            for layer in work.lm.view.layers
        ]
    )
    moved = change * dots
    fall = -moved[moved < 0].sum()
    signs = {"T": dots > 0, "A": dots < 0, "P": base > 0, "N": base < 0}
    return {
        name: float(moved[signs[name[0]] & signs[name[1]]].sum() / fall)
        for name in ("TP", "TN", "AP", "AN")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    work, base, changes = shifts(given.folder)
    probe, rng = work.probe("strict"), np.random.default_rng(0)
    against = "dpo_kl" if "dpo_kl" in changes else "dpo"
    tuned = changes[against]
    lines: list[dict[str, Any]] = []
    print(f"{work.lm.name}, {PROMPTS} unseen prompts, against {against}")
    for name, change in {**changes, "shuffled": np.zeros(0)}.items():
        if name == against:
            continue
        if name == "shuffled":
            each = np.stack(
                [correlations(rng.permuted(tuned, axis=1), tuned) for _ in range(SHUFFLES)]
            )
            print(f"shuffled: {each.mean():+.3f}, a layer's largest {np.abs(each).max():.3f}")
            continue
        layers = correlations(change, tuned)
        mean = estimate(layers)
        assert mean is not None
        same = float(np.mean(np.sign(change) == np.sign(tuned)))
        groups = by_group(work, base, change, probe)
        shown = ", ".join(f"{group} {share:+.2f}" for group, share in groups.items())
        print(f"{name}: rank correlation {mean}, same sign {same:.3f}; along the probe {shown}")
        lines += [
            {"method": name, "layer": layer, "rank correlation": float(value)}
            for layer, value in enumerate(layers)
        ]
    groups = by_group(work, base, tuned, probe)
    print(f"{against}: along the probe", ", ".join(f"{g} {s:+.2f}" for g, s in groups.items()))
    if given.figure is not None:
        chart = (
            alt.Chart(pl.DataFrame(lines))
            .mark_line(point=True)
            .encode(x="layer:Q", y="rank correlation:Q", color="method:N", strokeDash="method:N")
        )
        title = f"Changes of mean activations, against those under {against}"
        save(titled(chart, title, "Spearman's correlation in each layer"), given.figure)


if __name__ == "__main__":
    main()
