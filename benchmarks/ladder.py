"""The ladder at one price: every way of lowering toxicity, dialled to the same KL on neutral text, judged on held-out prompts.

    dialdown run --set front.count=48            # or any finished study with a front: pairs, DPO, gains, searched edits
    python benchmarks/ladder.py runs/demo --kl 0.02 0.05

Full DPO is dialled too, by interpolating its weights with the base model's; a dial is the fair way to compare at one price.
The KL that is matched is measured on text that no row is evaluated on. Differences to DPO are paired over prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dialdown as dd
from dialdown.config import Config
from dialdown.editing import found_edits, trained_gains
from dialdown.evaluation import Evaluator, Row, Suite
from dialdown.files import read_json, write_json
from dialdown.gains import shuffled
from dialdown.interventions import untouched
from dialdown.metrics.perplexity import TextProbe
from dialdown.models import LM
from dialdown.workspace import Workspace

Dial = Callable[[float], AbstractContextManager[None]]
ROUNDS = 11


@contextmanager
def interpolated(lm: LM, change: dict[str, torch.Tensor], strength: float) -> Iterator[None]:
    """The model part of the way to another one, weight by weight; bit-identical afterwards."""
    weights = {name: weight.data for name, weight in lm.model.named_parameters() if name in change}
    kept = {name: weight.clone() for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            weight.add_(strength * change[name])
        yield
    finally:
        for name, weight in weights.items():
            weight.copy_(kept[name])


def dials(work: Workspace, lm: LM) -> Iterator[tuple[str, Dial]]:
    """Every rung that the study in the folder has, as something with one dial."""
    # Parameters and not the state dict, which would name a tied embedding twice.
    base, tuned = (dict(one.model.named_parameters()) for one in (lm, work.tuned))
    change = {name: (tuned[name] - base[name]).detach() for name in base}
    ids = torch.arange(20)[None]
    with torch.no_grad(), interpolated(lm, change, 1.0):
        torch.testing.assert_close(lm.model(ids).logits, work.tuned.model(ids).logits, atol=1e-3, rtol=1e-4)
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
    """The greatest strength up to 3 whose KL is at most what is wanted, by bisection on a logarithmic scale; and that KL."""
    low, high, reached = 0.02, 3.0, 0.0
    for _ in range(ROUNDS):
        middle = float(np.sqrt(low * high))
        with dial(middle):
            text = probe.measure(lm)
        kl = float(np.average(text.kl, weights=text.tokens))
        low, high, reached = (middle, high, kl) if kl <= wanted else (low, middle, reached)
    return low, reached


@dataclass(frozen=True)
class Bench:
    """What every way is measured with: a model whose weights may be changed, and the texts and prompts of a study."""

    work: Workspace
    dialled: LM
    probe: TextProbe
    suite: Suite

    @classmethod
    def of(cls, folder: Path) -> Bench:
        """From the folder of a study."""
        work = Workspace(Config(**read_json(folder / "run.json")["config"]), folder)
        probe = TextProbe(work.lm, work.neutral_windows, kl_windows=len(work.neutral_windows))
        return cls(work, work.lm.twin(), probe, work.suite(work.config.evaluation.count))

    def row(self, name: str, dial: Dial, strength: float) -> Row:
        """One way at one strength; a new evaluator each time, which would not notice that a model it knows has changed."""
        with dial(strength):
            return Evaluator(self.work.lm, self.suite).row(untouched(name), "strict", model=self.dialled)

    def at_price(self, name: str, dial: Dial, wanted: float) -> tuple[Row, dict[str, float]]:
        """One way at the strength where the KL on neutral text is as wanted."""
        strength, kl = strength_at(dial, self.probe, self.dialled, wanted)
        return self.row(name, dial, strength), {"wanted_kl": wanted, "strength": strength, "neutral_kl": kl}


def written(row: Row, untouched_row: Row, against: Row) -> dict[str, Any]:
    """A row's figures: means with intervals, and the paired differences."""
    facts = {name: vars(row.metric(name)) for name in ("toxicity", "kl", "degenerate")}
    facts["by"] = {judge: vars(row.metric(f"toxicity/{judge}")) for judge in row.measured.judges}
    facts["log_ppl_change"] = vars(row.change("log_ppl", untouched_row))
    return {**facts, "toxicity_minus_dpo": vars(row.change("toxicity", against))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kl", type=float, nargs="+", default=[0.02, 0.05])
    given = parser.parse_args()
    bench = Bench.of(given.folder)
    reference = bench.row("untouched", lambda strength: nullcontext(), 0)
    print(f"untouched: toxicity {reference.metric('toxicity')}", flush=True)
    found = [{"way": "untouched", **written(reference, reference, reference)}]
    for wanted in given.kl:
        dpo = None
        for name, dial in dials(bench.work, bench.dialled):
            row, price = bench.at_price(name, dial, wanted)
            dpo = dpo or row
            found.append({"way": name, **price, **written(row, reference, dpo)})
            print(
                f"KL {wanted:g}, {name}: strength {price['strength']:.2f}, toxicity {row.metric('toxicity')}",
                flush=True,
            )
            write_json(given.folder / "ladder.json", {"rows": found})


if __name__ == "__main__":
    main()
