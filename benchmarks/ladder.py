"""The ladder at one price: every way of lowering toxicity, dialled to the same KL on neutral text, judged on held-out prompts.

    dialdown detox embedded:smollm2-135m --out calm                            # pairs and neuron gains
    dialdown detox embedded:smollm2-135m --out calm --no-training --force      # searched edits, from the same pairs
    python benchmarks/ladder.py calm-work

Full DPO is trained here, on the very pairs of the gains, and dialled like them: by interpolating its weights with the base
model's. The KL that is matched is measured on text that no row is evaluated on. Differences to DPO are paired over prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dialdown as dd
from dialdown.activations import NeuronMeans
from dialdown.config import Config
from dialdown.directions import Direction
from dialdown.editing import found_any, found_edits, trained_gains
from dialdown.evaluation import Evaluator, Row, Suite
from dialdown.files import read_json, write_json
from dialdown.gains import importance, keep_top, shuffled
from dialdown.interventions import untouched
from dialdown.metrics.perplexity import TextProbe
from dialdown.models import LM
from dialdown.pairs import PairSet
from dialdown.workspace import Workspace

Dial = Callable[[float], AbstractContextManager[None]]
# One pass over the pairs at the rate of METHOD §8, with a warm-up as short as the run.
DPO = dd.DPOSettings(
    learning_rate=1e-5, warmup_steps=5, batch_size=8, accumulation=1, epochs=1, eval_every=1000, eval_pairs=8
)
KEPT = (0.3, 0.1, 0.03)
ROUNDS = 6


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


def full_dpo(work: Workspace, lm: LM) -> Dial:
    """DPO on the folder's pairs, as something that can be dialled in `lm`."""
    pairs = PairSet.load(work.folder / "pairs.jsonl").pairs
    out = work.folder / "ladder-dpo"
    dd.train_dpo(work.lm.model, work.lm.tokenizer, pairs, replace(DPO, seed=work.config.seed), out, progress=told)
    loaded = dd.load_tuned(work.lm, out)
    # Parameters and not the state dict, which would name a tied embedding twice.
    base, tuned = (dict(one.model.named_parameters()) for one in (lm, loaded))
    change = {name: (tuned[name] - base[name]).detach() for name in base}
    ids = torch.arange(20)[None]
    with torch.no_grad(), interpolated(lm, change, 1.0):
        torch.testing.assert_close(lm.model(ids).logits, loaded.model(ids).logits, atol=1e-3, rtol=1e-4)
    return lambda strength: interpolated(lm, change, strength)


def told(label: str, done: int, total: int) -> None:
    """Progress, a line now and then."""
    if done % 10 == 0 or done == total:
        print(f"{label}: {done} of {total}", flush=True)


def edits(work: Workspace) -> Iterator[tuple[str, dd.Intervention]]:
    """Every edit that the folder has, and the controls."""
    gains = trained_gains(work)
    base = NeuronMeans.load(work.folder / "means-base.safetensors")
    moved = importance(work.lm, gains, base)
    yield "neuron gains", gains
    yield "the same gains, random neurons", shuffled(gains, seed=work.config.seed)
    for share in KEPT:
        yield f"neuron gains, {share:.0%} of the neurons", keep_top(gains, moved, round(share * moved.size))
    if found_any(work):
        for one in found_edits(work, 2):
            recipe = one.record["search"]
            yield f"searched, no training: {recipe.get('neurons', 'least squares')}", one
    for name in ("probe", "random"):
        table = dd.neuron_table(work.lm, Direction.load(work.folder / f"direction-{name}.safetensors"), base)
        yield f"the paper's rule as scale, {name} direction", dd.edit(table, alpha=0.5, beta=0.1)


@dataclass(frozen=True)
class Bench:
    """What every way is measured with: a model whose weights may be changed, and the texts and prompts of a folder."""

    work: Workspace
    dialled: LM
    probe: TextProbe
    suite: Suite

    @classmethod
    def of(cls, folder: Path) -> Bench:
        """From the work folder of `dialdown detox`, whichever of its two ways ran last."""
        stages = tuple(read_json(folder / "run.json")["stages"])
        order = tuple(one for one in ("probe", "pairs", "gains", "means", "search", "dial", "check") if one in stages)
        work = Workspace(Config(**read_json(folder / "run.json")["config"]), folder, stages=order)
        probe = TextProbe(work.lm, work.neutral_windows, kl_windows=len(work.neutral_windows))
        return cls(work, work.lm.twin(), probe, work.suite(work.config.evaluation.count))

    def row(self, name: str, dial: Dial, strength: float) -> Row:
        """One way at one strength; by a new evaluator, since one would not notice that a model it knows has changed."""
        with dial(strength):
            return Evaluator(self.work.lm, self.suite).row(untouched(name), "strict", model=self.dialled)

    def at_price(self, name: str, dial: Dial, wanted: float) -> tuple[Row, dict[str, float]]:
        """One way at the greatest strength up to 4 whose KL is at most as wanted, to a few percent."""
        low, high, strength, reached = 0.0, 4.0, 1.0, 0.0
        for _ in range(ROUNDS):
            with dial(strength):
                text = self.probe.measure(self.dialled)
            kl = float(np.average(text.kl, weights=text.tokens))
            low, high, reached = (strength, high, kl) if kl <= wanted else (low, strength, reached)
            if 0.97 * wanted <= kl <= wanted:
                break
            # A KL grows with the square of a small change; aiming a little below stays within the price.
            aimed = strength * (0.985 * wanted / kl) ** 0.5
            strength = aimed if low < aimed < high else (low + high) / 2
        return self.row(name, dial, low), {"wanted_kl": wanted, "strength": low, "neutral_kl": reached}


def written(row: Row, untouched_row: Row, against: Row) -> dict[str, Any]:
    """A row's figures: means with intervals, and the paired differences."""
    facts = {name: vars(row.metric(name)) for name in ("toxicity", "kl", "degenerate", "log_ppl")}
    facts["by"] = {judge: vars(row.metric(f"toxicity/{judge}")) for judge in row.measured.judges}
    facts["log_ppl_change"] = vars(row.change("log_ppl", untouched_row))
    paired = ("toxicity", *(f"toxicity/{judge}" for judge in row.measured.judges[1:]), "log_ppl", "kl")
    return {**facts, "minus_dpo": {name: vars(row.change(name, against)) for name in paired}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kl", type=float, nargs="+", default=[0.05])
    given = parser.parse_args()
    bench = Bench.of(given.folder)
    reference = bench.row("untouched", lambda strength: nullcontext(), 0)
    found = [{"way": "untouched", **written(reference, reference, reference)}]
    ways: dict[str, Dial] = {"full DPO": full_dpo(bench.work, bench.dialled)}
    for name, edit in edits(bench.work):
        ways[name] = lambda strength, edit=edit: edit.at(strength).folded_into(bench.dialled)
    for wanted in given.kl:
        dpo = None
        for name, dial in ways.items():
            row, price = bench.at_price(name, dial, wanted)
            dpo = dpo or row
            found.append({"way": name, **price, **written(row, reference, dpo)})
            print(f"KL {wanted:g}, {name}: strength {price['strength']:.2f}, {row.metric('toxicity')}", flush=True)
            write_json(given.folder / "ladder.json", {"rows": found})


if __name__ == "__main__":
    main()
