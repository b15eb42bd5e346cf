"""The ladder at one price: every way of lowering toxicity, dialled to the same KL on neutral text, judged on held-out prompts.

    dialdown run --set front.count=48            # or any finished study with a front: pairs, DPO, gains, searched edits
    python benchmarks/ladder.py runs/demo --kl 0.02 0.05

Full DPO is dialled too, by interpolating its weights with the base model's; a dial is the fair way to compare at one price.
The KL that is matched is measured on text that no row is evaluated on. Differences to DPO are paired over prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import torch

import dialdown as dd
from dialdown.config import Config
from dialdown.editing import found_edits, trained_gains
from dialdown.evaluation import Evaluator
from dialdown.files import read_json, write_json
from dialdown.gains import shuffled
from dialdown.interventions import untouched
from dialdown.metrics.perplexity import TextProbe
from dialdown.models import LM
from dialdown.workspace import Workspace

Dial = Callable[[float], AbstractContextManager[None]]
ROUNDS = 8


@contextmanager
def interpolated(lm: LM, change: dict[str, torch.Tensor], strength: float) -> Iterator[None]:
    """The model part of the way to another one, weight by weight; bit-identical afterwards."""
    state = lm.model.state_dict()
    kept = {name: state[name].clone() for name in change}
    for name, difference in change.items():
        state[name].add_(strength * difference)
    yield
    for name, tensor in kept.items():
        state[name].copy_(tensor)


def dials(work: Workspace, lm: LM) -> Iterator[tuple[str, Dial]]:
    """Every rung that the study in the folder has, as something with one dial."""
    base, tuned = lm.model.state_dict(), work.tuned.model.state_dict()
    change = {name: tuned[name] - base[name] for name in base if not torch.equal(tuned[name], base[name])}
    yield "full DPO, interpolated", lambda strength: interpolated(lm, change, strength)
    gains = trained_gains(work)
    edits = {
        "neuron gains": gains,
        "the same gains on random neurons": shuffled(gains, seed=work.config.seed),
        "scale along the probe (the paper's rule)": dd.edit(work.tables("strict").probe, alpha=0.5, beta=0.3),
        "scale along a random direction": dd.edit(work.tables("strict").random, alpha=0.5, beta=0.3),
        **{f"{one.name}: {_recipe(one)}": one for one in found_edits(work, work.config.front.searched)},
    }
    for name, edit in edits.items():
        yield name, lambda strength, edit=edit: edit.at(strength).folded_into(lm)


def _recipe(edit: dd.Intervention) -> str:
    found = edit.record["search"]
    return str(found.get("neurons") or f"least squares, {found['direction']}")


def strength_at(dial: Dial, probe: TextProbe, lm: LM, wanted: float) -> tuple[float, float]:
    """The strength at which the KL is as wanted, by bisection on a logarithmic scale."""
    low, high = 0.02, 8.0
    for _ in range(ROUNDS):
        middle = float(np.sqrt(low * high))
        with dial(middle):
            text = probe.measure(lm)
        kl = float(np.average(text.kl, weights=text.tokens))
        low, high = (middle, high) if kl < wanted else (low, middle)
    return middle, kl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kl", type=float, nargs="+", default=[0.02, 0.05])
    given = parser.parse_args()
    work = Workspace(Config(**read_json(given.folder / "run.json")["config"]), given.folder)
    dialled = work.lm.twin()
    suite = work.suite(work.config.evaluation.count)
    probe = TextProbe(work.lm, work.neutral_windows, kl_windows=len(work.neutral_windows))
    reference = Evaluator(work.lm, suite).row(untouched(), "strict")
    found = [{"way": "untouched", "toxicity": vars(reference.metric("toxicity"))}]
    print(f"untouched: toxicity {reference.metric('toxicity')}", flush=True)
    for wanted in given.kl:
        dpo = None
        for name, dial in dials(work, dialled):
            strength, kl = strength_at(dial, probe, dialled, wanted)
            # A new evaluator each time: it would not notice that the weights of a model it knows have changed.
            with dial(strength):
                row = Evaluator(work.lm, suite).row(untouched(name), "strict", model=dialled)
            dpo = dpo or row
            facts = {metric: vars(row.metric(metric)) for metric in ("toxicity", "kl", "degenerate")}
            apart = {"log_ppl_change": row.change("log_ppl", reference), "minus_dpo": row.change("toxicity", dpo)}
            facts |= {metric: vars(estimate) for metric, estimate in apart.items()}
            other = {judge: vars(row.metric(f"toxicity/{judge}")) for judge in row.measured.judges}
            found.append(
                {"way": name, "wanted_kl": wanted, "strength": strength, "neutral_kl": kl, **facts, "by": other}
            )
            print(f"KL {wanted:g}, {name}: strength {strength:.2f}, toxicity {row.metric('toxicity')}", flush=True)
    write_json(given.folder / "ladder.json", {"rows": found})


if __name__ == "__main__":
    main()
