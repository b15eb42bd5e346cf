"""A small run folder with invented but plausible numbers, so that the report can be tested without
a study.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dialdown.files import SCHEMA
from dialdown.models.protocol import Protocol
from dialdown.neurons import NeuronTable
from dialdown.study import Config

LAYERS, NEURONS = 6, 60
JUDGES = ("embedded:ngram", "embedded:minilm")
PROMPT = "What a <b>day</b> & what a"

# Name: kind, toxicity (strict, paper), change of log-perplexity (strict, paper).
MAIN: dict[str, tuple[str, tuple[float, float], tuple[float, float]]] = {
    "none": ("none", (0.39, 0.37), (0.0, 0.0)),
    "dpo": ("none", (0.11, 0.10), (0.032, 0.032)),
    "steer_probe": ("steer", (0.27, 0.28), (0.41, 0.004)),
    "patch_256": ("set", (0.36, 0.35), (0.02, 0.001)),
    "patch_TP": ("set", (0.33, 0.34), (0.11, 0.002)),
    "patch_TP_AN": ("set", (0.25, 0.24), (0.9, 0.03)),
    "patch_TP_AN_TN": ("set", (0.19, 0.17), (1.9, 0.08)),
    "patch_four_groups": ("set", (0.13, 0.12), (3.2, 0.14)),
    "patch_all_increasing": ("set", (0.58, 0.55), (2.8, 0.12)),
    "patch_four_groups_shift": ("shift", (0.21, 0.22), (0.06, 0.002)),
    "edit_probe_set": ("set", (0.04, 0.03), (5.88, 0.27)),
    "edit_probe_shift": ("shift", (0.22, 0.24), (0.025, 0.001)),
    "edit_probe_scale": ("scale", (0.17, 0.18), (0.25, 0.006)),
    "edit_probe_free_set": ("set", (0.05, 0.04), (5.6, 0.26)),
    "edit_probe_free_shift": ("shift", (0.26, 0.27), (0.05, 0.001)),
    "edit_probe_free_scale": ("scale", (0.24, 0.25), (0.31, 0.007)),
}
PROTOCOLS: tuple[Protocol, ...] = ("strict", "paper")


def write_run(
    folder: Path,
    *,
    protocols: Sequence[Protocol] = PROTOCOLS,
    model: str = "embedded:smollm2-135m",
    main: Mapping[str, tuple[str, tuple[float, float], tuple[float, float]]] = MAIN,
    random_like_edit: bool = True,
    n: int = 128,
    tuned: str | None = None,
    neurons: bool = True,
) -> Path:
    """Write run.json, results.json and the neuron tables.

    Args:
        folder: where.
        protocols: which were run.
        model: its id.
        main: rows that are not controls.
        random_like_edit: controls on random neurons do what the intervention does, or next to
            nothing.
        n: prompts.
        tuned: a tuned model that was given, so that nothing was trained.
        neurons: write the neuron tables.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for protocol in protocols:
        place = PROTOCOLS.index(protocol)
        for name, (kind, toxicity, price) in main.items():
            values = (toxicity[place], price[place], main["none"][1][place])
            rows.append(_row(name, kind, protocol, values, n))
            rows += [
                _row(
                    f"{name}__{control}",
                    kind,
                    protocol,
                    changed,
                    n // 2,
                    control_of=name,
                    main=values,
                )
                for control, changed in _controls(name, kind, values, random_like_edit)
            ]
        if neurons:
            _table(protocol).to_parquet(
                folder / ("neurons.parquet" if protocol == "strict" else "neurons-paper.parquet")
            )
    _dump(folder / "results.json", {"schema": SCHEMA, "rows": rows})
    settings = Config(model=model, tuned=tuned, protocols=tuple(protocols)).model_dump(mode="json")
    _dump(folder / "run.json", _info(settings, protocols, trained=tuned is None))
    return folder


def unfinish(folder: Path, rows: int) -> None:
    """Take an invented run back to where its first rows are measured; 0 is before all of them."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    (folder / "results.json").unlink()
    if rows:
        first = {**results, "rows": results["rows"][:rows], "of": len(results["rows"])}
        _dump(folder / "results-so-far.json", first)
    info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    del info["stages"]["evaluate"]
    _dump(folder / "run.json", info)


def _controls(
    name: str, kind: str, values: tuple[float, float, float], alike: bool
) -> list[tuple[str, tuple[float, float, float]]]:
    toxicity, price, base = values
    if name in ("none", "dpo"):
        return []
    faint = (base - 0.01, price * 0.1, base)
    random = (toxicity + 0.01, price * 0.95, base) if alike else faint
    if name == "steer_probe":
        return [("random_direction", faint)]
    if name.startswith("patch"):
        return [("random_neurons", random)]
    controls = [
        ("random_neurons", random),
        ("beta_reversed", (toxicity + 0.02, price * 1.1, base)),
        ("random_direction", random),
    ]
    return (
        [*controls, ("beta_zero", (toxicity + 0.005, price, base))] if kind == "set" else controls
    )


def _row(
    name: str,
    kind: str,
    protocol: str,
    values: tuple[float, float, float],
    n: int,
    *,
    control_of: str | None = None,
    main: tuple[float, float, float] | None = None,
) -> dict[str, Any]:
    toxicity, price, base = values
    spread = 0.45 / np.sqrt(n)
    edit = name.startswith("edit")
    broken = min(0.9, price / 6)
    return {
        "intervention": name,
        "family": control_of or name,
        "strength": "",
        "control": name.partition("__")[2],
        "kind": kind,
        "protocol": protocol,
        "control_of": control_of,
        "alpha": 0.5 if edit else 5.0 if kind == "steer" else None,
        "beta": 0.05 if edit else None,
        "neurons": 0 if kind in ("none", "steer") else 140,
        "toxicity": _estimate(toxicity, spread, n, floor=0.0),
        "log_ppl": _estimate(3.34 + price, 0.12, 4),
        "f1": _estimate(0.21 * (1 - broken), 0.03, 32, floor=0.0),
        "kl": _estimate(abs(price) * 0.8, 0.05 * abs(price), 4, floor=0.0),
        "repetition": _estimate(0.06 + broken / 2, 0.02, n, floor=0.0),
        "degenerate": _estimate(0.02 + broken, 0.015, n, floor=0.0),
        "toxicity_by": {
            judge: _estimate(toxicity * factor, spread, n, floor=0.0)
            for judge, factor in zip(JUDGES, (1, 0.8), strict=True)
        },
        "change": {
            "toxicity": _estimate(toxicity - base, 0.0 if name == "none" else spread, n),
            "log_ppl": _estimate(price, 0.08 * abs(price), 4),
            "f1": None,
            "degenerate": _estimate(broken, 0.0 if name == "none" else 0.015, n),
        },
        "control_minus_main": None
        if main is None
        else {
            "toxicity": _estimate(toxicity - main[0], spread / 3, n),
            "log_ppl": _estimate(price - main[1], 0.02, 4),
        },
        "samples": [
            {
                "prompt": f"{PROMPT} {place}",
                "continuation": f" <script>alert({place})</script> “{name}” {protocol}\nsecond line"
                if place
                else "",
            }
            for place in range(min(8, n))
        ],
    }


def _estimate(
    mean: float, spread: float, n: int, *, floor: float = -np.inf
) -> dict[str, float | int]:
    return {
        "mean": mean,
        "low": max(floor, mean - 1.96 * spread),
        "high": mean + 1.96 * spread,
        "n": n,
    }


def _table(protocol: str) -> NeuronTable:
    rng = np.random.default_rng(len(protocol))
    size = LAYERS * NEURONS
    layer = np.arange(size) // NEURONS
    cosine, base = rng.normal(0, 0.1, size), rng.normal(0, 0.02, size)
    tuned = base + rng.normal(-0.0002, 0.001, size) * (1 + layer)
    dots = cosine * 1.7
    change = (tuned - base) * dots - 1e-5 * np.abs(dots) * layer
    columns = {
        "cosine": cosine,
        "mean_base": base,
        "mean_tuned": tuned,
        "projection_base": base * dots,
        "projection_tuned": base * dots + change,
        "projection_change": change,
        "value_cosine": 1 - rng.gamma(1, 2e-6, size) * (1 + layer),
    }
    return NeuronTable(
        {name: values.reshape(LAYERS, NEURONS) for name, values in columns.items()},
        {"protocol": protocol, "direction": {"name": "probe"}, "base": {}},
    )


def _info(settings: dict[str, Any], protocols: Sequence[str], *, trained: bool) -> dict[str, Any]:
    steps = np.arange(1, 69)
    curve = 0.69 * np.exp(-steps / 25) + 0.08
    log = {
        "steps": 68, "best_step": 68, "train_pairs": 272, "eval_pairs": 16, "seconds": 231.0,
        "step": steps.tolist(), "loss": curve.tolist(), "dpo_loss": curve.tolist(),
        "kl_chosen": (0.11 * (1 - np.exp(-steps / 20))).tolist(),
        "kl_rejected": (0.19 * (1 - np.exp(-steps / 20))).tolist(),
        "reward_accuracy": (1 - 0.5 * np.exp(-steps / 15)).tolist(),
        "reward_margin": (steps / 30).tolist(),
        "eval_step": [68], "eval_loss": [0.21],
    }  # fmt: skip
    skipped = {"skipped": "a tuned model was given"}
    pairs = {
        "pairs": 288,
        "prompts_used": 420,
        "chosen_score": 0.08,
        "rejected_score": 0.81,
        "chosen_steered": 0.05,
        "rejected_steered": 0.4,
    }
    facts: dict[str, dict[str, Any]] = {
        "probe": {
            protocol: {"accuracy": 0.913, "auc": 0.968, "train": 921, "validation": 103, "C": 0.1}
            for protocol in protocols
        },
        "pairs": pairs if trained else skipped,
        "train": log if trained else skipped,
        "activations": {},
        "neurons": {},
        "evaluate": {
            "rows": 100,
            "judges": list(JUDGES),
            "caveat": "It reads words, not sentences, so a quoted slur counts like a thrown one.",
            "scorers": {judge: {"held_out_auc": 0.978, "trained_on": 1600} for judge in JUDGES},
        },
    }
    return {
        "schema": SCHEMA,
        "config": settings,
        "stages": {
            name: {"hash": "0" * 16, "seconds": 41.27, "peak_memory_mb": 2210, **fact}
            for name, fact in facts.items()
        },
        "versions": {"python": "3.11.2", "torch": "2.9.0"},
        "machine": {"platform": "Linux", "threads": 2},
    }


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
