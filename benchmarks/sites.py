"""One trained direction per layer at other linear layers: `python benchmarks/sites.py runs/ladder
o_proj --rate 3e-3`, on the folder of a `dialdown ladder` with the methods rank_one and dpo_kl.

LoRA of rank one on the modules of that name, trained as `rank_one` is on the down projections (the
same pairs, loss, KL, steps and optimiser), merged, dialled to the ladder's price, and judged on its
unseen prompts: toxicity by each judge, and the paired differences to the ladder's rank_one and
dpo_kl.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from parts import part

from dialdown.data import PairSet
from dialdown.evaluation.bootstrap import estimate
from dialdown.files import read_json
from dialdown.study import Config
from dialdown.study.context import Workspace
from dialdown.study.dial import dialled
from dialdown.study.gains import held_texts
from dialdown.study.ladder import MOST, Yardstick
from dialdown.study.ladder_methods import FOLDER
from dialdown.training.dpo import tune
from dialdown.training.generated_text import own_text_kl
from dialdown.training.policies import Trainable, with_adapters
from dialdown.training.rank_one import SCALE

BESIDE = ("rank_one", "dpo_kl")


def trained(work: Workspace, sites: list[str], rate: float) -> str:
    """Train, and write the merged model to a folder of the ladder's, whose name is returned."""
    lm = work.lm
    name = f"{FOLDER}/sites-{'-'.join(sites)}-{rate:g}"
    settings = replace(work.config.rank_one, seed=work.config.seed, learning_rate=rate)

    def save(policy: Any, folder: Path) -> None:
        copy.deepcopy(policy).merge_and_unload().save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)

    adapters = Trainable(
        lm.model,
        lm.tokenizer,
        prepare=lambda model: with_adapters(model, sites, settings.seed, r=1, lora_alpha=SCALE),
        save=save,
        result_bytes=sum(weight.nbytes for weight in lm.model.parameters()),
        given=[SCALE, *sites],
        template=lm.template,
    )
    pairs = PairSet.load(work.folder / "pairs.jsonl").pairs
    own_kl = own_text_kl(lm, held_texts(work), settings.own_kl_weight)
    log = tune(adapters, pairs, settings, work.folder / name, own_kl=own_kl)
    print(f"{np.mean(log.loss[:10]):.3f} to {np.mean(log.loss[-10:]):.3f}, {log.seconds:.0f} s")
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("sites", nargs="+", help="names of linear layers, such as o_proj")
    parser.add_argument("--rate", type=float, default=3e-3)
    given = parser.parse_args()
    work = Workspace(Config(**read_json(given.folder / "run.json")["config"]), given.folder)
    tuned = work.tuned_model(trained(work, given.sites, given.rate))
    yardstick = Yardstick(work)
    dial = part(work.lm, tuned, lambda kind: True)
    strength, kl = dialled(partial(yardstick.price, dial), work.config.ladder.kl, MOST)
    with dial(strength) as (lm, edit):
        values = yardstick.evaluator.measure(edit, "strict", model=lm).values
    print(f"{' '.join(given.sites)} at {given.rate:g}: dial {strength:.3g}, KL {kl:.3g}")
    for judge in (key for key in values if key.startswith("toxicity/")):
        scores = np.array(values[judge])
        print(f"{judge} {estimate(scores)}")
        for name in BESIDE:
            row = read_json(work.folder / "rows-ladder" / f"{name}.json")["measured"]
            print(f"  minus {name} {estimate(scores - np.array(row['values'][judge]))}")


if __name__ == "__main__":
    main()
