"""Invented runs for the claims: their values per prompt, and what is read off a claim's text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dialdown.evaluation.bootstrap import estimate
from dialdown.files import SCHEMA, write_sealed
from dialdown.report.claims import Claim, claims
from dialdown.report.run import load
from helpers.fabricated_run import MAIN, write_run

Values = NDArray[np.float64]
ALIGNED, OPPOSING = "Aligned neurons explain little", "Opposing effects"
GROUPS, EDITING = "Four groups replicate DPO", "Editing beats DPO"
PERPLEXITY, SPECIFIC = "Perplexity is preserved", "The effect is specific to the direction"

N = 60
BEFORE = np.linspace(0.3, 0.9, N)
AFTER = BEFORE - 0.2 - 0.1 * np.sin(np.arange(N))
TUNED = {"none": BEFORE, "dpo": AFTER}
# Blocks of unequal length, so that a mean over blocks is not a mean over tokens.
TOKENS = np.array([32] * 11 + [3])


def noise(size: float, *, n: int = N, mean: float = 0.0, seed: int = 1) -> Values:
    """Values with exactly this mean and standard deviation."""
    raw = np.random.default_rng(seed).standard_normal(n)
    return np.asarray(mean + size * (raw - raw.mean()) / raw.std())


def write(
    folder: Path,
    toxicity: Mapping[str, Any],
    log_ppl: Mapping[str, Any] | None = None,
    *,
    files: bool = True,
) -> Path:
    """A run whose rows have these values per prompt and per block; a control (`NAME__CONTROL`) is
    paired with its row.
    """
    prices = {name: np.zeros(len(TOKENS)) for name in toxicity} if log_ppl is None else log_ppl
    write_run(folder, protocols=("strict",), main={"none": MAIN["none"]}, neurons=False)
    scores = {name: np.array(values, dtype=np.float64) for name, values in toxicity.items()}
    rows = [_row(name, scores, prices.get(name)) for name in scores]
    (folder / "results.json").write_text(
        json.dumps({"schema": SCHEMA, "rows": rows}), encoding="utf-8"
    )
    (folder / "rows").mkdir(exist_ok=True)
    for name, values in scores.items() if files else ():
        per_unit = {"toxicity": [None if np.isnan(x) else x for x in values]}
        if name in prices:
            per_unit["log_ppl"] = [3.0 + x for x in prices[name]]
        saved = {
            "effect": "0",
            "values": per_unit,
            "tokens": TOKENS[: len(prices.get(name, ()))].tolist(),
            "texts": [],
            "judges": [],
            "seed": 0,
        }
        write_sealed(folder / "rows" / f"strict-{name}.json", saved)
    return folder


def _row(name: str, scores: Mapping[str, Values], price: Any) -> dict[str, Any]:
    main = name.partition("__")[0]
    toxicity, base = scores[name], scores["none"]

    def written(values: Values, weights: Any = None) -> dict[str, float | int] | None:
        known = ~np.isnan(values)
        interval = estimate(values[known], weights=None if weights is None else weights[known])
        return interval.to_json() if interval else None

    tokens = None if price is None else TOKENS[: len(price)]
    return {
        "intervention": name,
        "family": main,
        "strength": "",
        "control": name.partition("__")[2],
        "kind": "none" if name in ("none", "dpo") else "shift" if name.endswith("shift") else "set",
        "protocol": "strict",
        "control_of": main if main != name else None,
        "alpha": None,
        "beta": None,
        "neurons": 256,
        "toxicity": written(toxicity),
        "log_ppl": None if price is None else written(3.0 + np.array(price), tokens),
        "degenerate": {"mean": 0.125, "low": 0.05, "high": 0.25, "n": len(toxicity)},
        "change": {
            "toxicity": written(toxicity - base[: len(toxicity)]),
            "log_ppl": None if price is None else written(np.array(price), tokens),
            "degenerate": {"mean": 0.0, "low": 0.0, "high": 0.0, "n": len(toxicity)},
        },
        "control_minus_main": {"toxicity": written(toxicity - scores[main][: len(toxicity)])}
        if main != name
        else None,
        "samples": [],
    }


def claims_of(folder: Path, *, use_files: bool = True, **options: Any) -> dict[str, Claim]:
    run = load(folder)
    if not use_files:
        run = replace(run, folder=folder / "elsewhere")
    return {claim.name: claim for claim in claims(run, **options)}


def numbers(text: str, marker: str) -> tuple[float, float, float]:
    """The first `mean [low, high]` behind a marker; percentages as they are printed."""
    number = r"([+−]?\d+\.\d+)%?"
    match = re.search(rf"{number} \[{number}, {number}\]", text[text.index(marker) :])
    assert match is not None
    mean, low, high = (float(part.replace("−", "-")) for part in match.groups())
    return mean, low, high


def resample(values: Sequence[Values], statistic: Any) -> list[Any]:
    """A statistic of the means of resampled prompts, one resample after the other."""
    n = len(values[0])
    draws = np.random.default_rng(0).integers(0, n, size=(2000, n))
    return [
        statistic(*(float(sum(column[i] for i in rows) / n) for column in values))
        for rows in draws.tolist()
    ]


def with_degenerate(folder: Path, name: str, change: Mapping[str, float] | None) -> Path:
    """The run with another change of the share of degenerate continuations in one row."""
    path = folder / "results.json"
    results = json.loads(path.read_text())
    for row in results["rows"]:
        if row["intervention"] == name:
            row["change"]["degenerate"] = change
    path.write_text(json.dumps(results))
    return folder


# A change of the share of degenerate continuations after which a model no longer speaks.
BROKEN = {"mean": 0.8, "low": 0.7, "high": 0.9, "n": N}
AT_THE_PRICE = "held, at the price of the model"
