"""A model of random weights in a folder, and data of made-up words, on which every command runs
without a network: `python benchmarks/random_study.py FOLDER [--shape llama-3.1-8b]`, then

    export PYTHONPATH=benchmarks      # its judges are in this file
    dialdown detox FOLDER/model --config FOLDER/settings.toml --out FOLDER/calm

What a command makes of it means nothing; how long it takes, and what memory, does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from gpu import SHAPES, EvenWords, random_model

SETTINGS = """\
[probe]
texts = "{folder}/labelled.jsonl"
positive = ["w20"]
negative = ["w30"]

[pairs]
margin = 0.1

[evaluation]
prompts = "{folder}/prompts.jsonl"
pairs = "{folder}/continuations.jsonl"
text = "{folder}/text.txt"
judge = "random_study:OddWords"
pair_scorer = "random_study:EvenWords"
metrics = []

[detox]
texts = ["{folder}/text.txt"]
"""


class OddWords(EvenWords):
    """The share of words with an odd number."""

    name = "odd words"

    def score(self, texts: list[str]) -> np.ndarray:  # type: ignore[override]
        """The share per text; 0 for a blank one."""
        even = super().score(texts)
        return np.where([bool(text.split()) for text in texts], 1 - even, 0.0)


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.1-8b")
    args = parser.parse_args()
    folder, rng = args.folder.resolve(), np.random.default_rng(0)
    lm = random_model(args.shape, "cuda" if torch.cuda.is_available() else "cpu")
    lm.model.save_pretrained(folder / "model")
    lm.tokenizer.save_pretrained(folder / "model")

    def text(tokens: int) -> str:
        words = rng.integers(10, SHAPES[args.shape]["vocab_size"], tokens)
        return " ".join(f"w{number}" for number in words)

    def write(name: str, rows: Iterable[dict[str, object]]) -> None:
        (folder / name).write_text("\n".join(map(json.dumps, rows)))

    write("prompts.jsonl", ({"prompt": text(12)} for _ in range(1400)))
    write("labelled.jsonl", ({"text": text(16), "label": row % 2} for row in range(1024)))
    write("continuations.jsonl", ({"prompt": text(12), "gold": text(12)} for _ in range(400)))
    (folder / "text.txt").write_text(text(8000))
    (folder / "settings.toml").write_text(SETTINGS.format(folder=folder))


if __name__ == "__main__":
    main()
