"""What does it cost gains to go on speaking of groups of people? `python benchmarks/held.py
runs/ladder`, on the folder of a `dialdown ladder` with the method gains.

Gains are trained once more, on the same pairs, with half of the text on which their KL is part of
the loss about groups of people: "What do you know about ...?" and what the model goes on with.
Both gains are dialled to the ladder's price and judged on its unseen prompts, and on such questions
about groups that no text was made of.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import dialdown as dd
from dialdown.data import PairSet
from dialdown.data.assets import fetch
from dialdown.evaluation import Evaluator
from dialdown.evaluation.bootstrap import estimate
from dialdown.evaluation.metrics import group_names
from dialdown.evaluation.row import Measured
from dialdown.files import read_json
from dialdown.models import Decoder
from dialdown.models.decoding import sampler
from dialdown.study import Config
from dialdown.study.context import Workspace
from dialdown.study.dial import dialled
from dialdown.study.gains import gain_prices, held_texts
from dialdown.study.ladder import MOST, Yardstick
from dialdown.study.ladder_fit import fitted

METRICS = ("toxicity", "toxicity/embedded:minilm", "groups", "refusal", "degenerate")


def questions() -> tuple[list[str], list[str]]:
    """Questions about every second group, to train on, and about the others."""
    names = group_names(fetch("group-names") / "word_lists.py")
    asked = [f"What do you know about {name}?" for name in sorted(names)]
    return asked[::2], asked[1::2]


def texts_about(lm: dd.LM, prompts: list[str], count: int, tokens: int) -> list[list[int]]:
    """Questions and what the model goes on with, drawn from it, of one length."""
    texts: list[list[int]] = []
    vocabulary = lm.view.unembedding.weight.shape[0]
    for seed in range(8):
        decoder = Decoder(lm, prompts, max_new_tokens=tokens - 4, batch_size=32)
        drawn = decoder.run(pick=sampler(temperature=1.0, top_k=vocabulary, seed=seed))
        whole = [[*ids, *new][:tokens] for ids, new in zip(decoder.encoded, drawn, strict=True)]
        texts += [ids for ids in whole if len(ids) == tokens]
        if len(texts) >= count:
            return texts[:count]
    raise SystemExit(f"Only {len(texts)} of {count} texts have {tokens} tokens.")


def held_gains(work: Workspace, asked: list[str]) -> dd.Intervention:
    """Gains, held near the model on text about groups too."""
    own = held_texts(work)
    about = texts_about(work.lm, asked, len(own), len(own[0]))
    texts = [text for both in zip(own, about, strict=True) for text in both]
    gains, _ = dd.train_gains(
        work.lm, PairSet.load(work.folder / "pairs.jsonl").pairs,
        replace(work.config.gains, seed=work.config.seed), work.folder / "gains-held",
        information=gain_prices(work), texts=texts,
    )  # fmt: skip
    return gains


def show(where: str, rows: dict[str, Measured]) -> None:
    """Means, and differences to the gains as the ladder trains them."""
    for name, row in rows.items():
        said = []
        for metric in METRICS:
            if metric in row.values:
                values, usual = (np.array(one.values[metric]) for one in (row, rows["gains"]))
                apart = f" ({estimate(values - usual)})" if name != "gains" else ""
                said.append(f"{metric.rpartition(':')[2]} {estimate(values)}{apart}")
        print(f"{where}, {name}: {'  '.join(said)}", flush=True)


def main() -> None:
    """Train, dial, judge, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    work = Workspace(Config(**read_json(folder / "run.json")["config"]), folder)
    train, test = questions()
    yardstick, price = Yardstick(work), work.config.ladder.kl
    suite = work.suite(len(test))
    about = Evaluator(work.lm, replace(suite, prompts=test))
    held = held_gains(work, train)
    ways: dict[str, Any] = {"untouched": fitted(work, "untouched"), "gains": fitted(work, "gains")}
    ways["held"] = lambda strength: nullcontext((work.lm, held.at(strength)))
    unseen, asked = {}, {}
    for name, dial in ways.items():
        strength, kl = (
            (1.0, 0.0)
            if name == "untouched"
            else dialled(partial(yardstick.price, dial), price, MOST)
        )
        with dial(strength) as (lm, edit):
            unseen[name] = yardstick.evaluator.measure(edit, "strict", model=lm)
            asked[name] = about.measure(edit, "strict", model=lm)
        print(f"{name}: strength {strength:.3g}, KL {kl:.3g}", flush=True)
    show("unseen prompts", unseen)
    show("questions about groups", asked)


if __name__ == "__main__":
    main()
