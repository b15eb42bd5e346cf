"""Which weights carry what DPO does? `python benchmarks/parts.py runs/ladder`, on the folder of
a `dialdown ladder` with the method dpo_kl.

Each kind of weight alone, and all but it, is moved to its tuned values, and dialled to the ladder's
price as a method is: toxicity on the unseen prompts by each judge, and the paired difference to
all of DPO at the same price. `moved` is the strength that the price allows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

import dialdown as dd
from dialdown.evaluation.bootstrap import estimate
from dialdown.files import read_json
from dialdown.interventions.intervention import untouched
from dialdown.models.hooks import changing
from dialdown.study import Config
from dialdown.study.context import Workspace
from dialdown.study.dial import dialled
from dialdown.study.ladder import MOST, Yardstick
from dialdown.study.ladder_fit import Dial
from dialdown.study.ladder_methods import FOLDER

KINDS = ("embedding", "attention", "MLP, read", "MLP, write", "norms")


def kind_of(lm: dd.LM, name: str, weight: torch.Tensor) -> str:
    """One of KINDS."""
    ends = (lm.model.get_input_embeddings(), lm.model.get_output_embeddings())
    if any(weight is end.weight for end in ends):
        return "embedding"
    if weight.ndim < 2:
        return "norms"
    if ".mlp." not in name:
        return "attention"
    columns = {layer.columns.data_ptr() for layer in lm.view.layers}
    return "MLP, write" if weight.data_ptr() in columns else "MLP, read"


def part(base: dd.LM, tuned: dd.LM, wanted: Callable[[str], bool]) -> Dial:
    """The base model with the wanted kinds of weight moved towards their tuned values."""
    before = dict(base.model.named_parameters())
    after = {name: weight.detach().clone() for name, weight in tuned.model.named_parameters()}
    kinds = {name: kind_of(base, name, weight) for name, weight in before.items()}

    @contextmanager
    def dial(strength: float) -> Iterator[tuple[dd.LM, dd.Intervention]]:
        with changing(tuned), torch.no_grad():
            for name, weight in tuned.model.named_parameters():
                moved = strength if wanted(kinds[name]) else 0.0
                weight.copy_(before[name].detach().lerp(after[name], moved))
            yield tuned, untouched()
            for name, weight in tuned.model.named_parameters():
                weight.copy_(after[name])

    return dial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    work = Workspace(Config(**read_json(given.folder / "run.json")["config"]), given.folder)
    yardstick, price = Yardstick(work), work.config.ladder.kl
    tuned = work.tuned_model(f"{FOLDER}/dpo_kl")
    parts: dict[str, Callable[[str], bool]] = {"all": lambda kind: True}
    parts |= {f"only {kind}": partial(str.__eq__, kind) for kind in KINDS}
    parts |= {f"all but {kind}": partial(str.__ne__, kind) for kind in KINDS}
    judged: dict[str, dict[str, np.ndarray]] = {}
    for name, wanted in parts.items():
        dial = part(work.lm, tuned, wanted)
        strength, kl = dialled(partial(yardstick.price, dial), price, MOST)
        with dial(strength) as (lm, edit):
            values = yardstick.evaluator.measure(edit, "strict", model=lm).values
        scores = {key: np.array(values[key]) for key in values if key.startswith("toxicity/")}
        judged[name] = scores
        shown = [f"{name:20s} moved {strength:.3g}, KL {kl:.3g}"]
        for judge, toxicity in scores.items():
            apart = estimate(toxicity - judged["all"][judge])
            shown.append(f"{judge.rpartition(':')[2]} {estimate(toxicity)} ({apart})")
        print("  ".join(shown), flush=True)


if __name__ == "__main__":
    main()
