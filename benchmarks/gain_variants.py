"""Ways of training neuron gains on one set of pairs, each dialled to the same KL on neutral text (docs/lab-log.md).

    dialdown detox embedded:smollm2-135m --out calm
    python benchmarks/gain_variants.py calm-work

What was trained stays in FOLDER/gain-variants, so a repeated call goes on.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ladder import Bench, full_dpo, written

import dialdown as dd
from dialdown.activations import NeuronMeans
from dialdown.files import write_json
from dialdown.gains import GainSettings, importance, keep_top, train_gains
from dialdown.pairs import PairSet

USUAL = GainSettings()
VARIANTS = {
    "as in the quick look: lr 6e-3, batches of 4": GainSettings(learning_rate=6e-3, batch_size=4),
    "lr 3e-2": GainSettings(learning_rate=3e-2),
    "two epochs": GainSettings(epochs=2),
    "γ .2": GainSettings(kl_weight=0.2),
}
KEPT = (0.5, 0.2, 0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kl", type=float, default=0.05)
    given = parser.parse_args()
    bench = Bench.of(given.folder)
    work, lm = bench.work, bench.dialled
    pairs = PairSet.load(given.folder / "pairs.jsonl").pairs
    edits: dict[str, dd.Intervention] = {}
    for number, (name, settings) in enumerate({"the default": USUAL, **VARIANTS}.items()):
        out = given.folder / "gain-variants" / str(number)
        edits[name], _ = train_gains(work.lm, pairs, replace(settings, seed=work.config.seed), out)
    usual = edits["the default"]
    order = importance(lm, usual, NeuronMeans.load(work.path("means-base.safetensors", "strict")))
    edits |= {f"the default, {share:.0%} kept": keep_top(usual, order, round(share * order.size)) for share in KEPT}
    dpo, price = bench.at_price("full DPO", full_dpo(work, lm), given.kl)
    found = [{"way": "full DPO", **price, **written(dpo, dpo, dpo)}]
    for name, edit in edits.items():
        row, price = bench.at_price(name, lambda strength, edit=edit: edit.at(strength).folded_into(lm), given.kl)
        found.append({"way": name, **price, **written(row, dpo, dpo)})
        print(f"{name}: strength {price['strength']:.2f}, toxicity {row.metric('toxicity')}", flush=True)
        write_json(given.folder / "gain-variants.json", {"rows": found})


if __name__ == "__main__":
    main()
