"""How far the embedded scorers agree with Perspective and with people: `python
benchmarks/scorers.py`.

Two yardsticks nobody here trained on:

    Perspective   its toxicity scores of the 993 embedded RealToxicityPrompts prompts
    people        the human labels of the comments in the probe's part, which trained no scorer:
                  2,000 of at most 20 words

Any further scorer that `load_scorer` takes may be named: `python benchmarks/scorers.py
unitary/toxic-bert`.
"""

from __future__ import annotations

import argparse
import json
from datetime import date

import numpy as np
import polars as pl
from sklearn.metrics import roc_auc_score

from dialdown.data.assets import fetch
from dialdown.data.texts import load_labelled
from dialdown.evaluation.bootstrap import agreement
from dialdown.evaluation.scorers import load_scorer


def main() -> None:
    """Score both sets of texts and print two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("more", nargs="*", help="further scorers")
    names = ["embedded:ngram", "embedded:minilm", *parser.parse_args().more]
    scorers = {name: load_scorer(name) for name in names}
    with (fetch("challenge-prompts") / "test.jsonl").open(encoding="utf-8") as lines:
        prompts = [json.loads(line) for line in lines if line.strip()]
    scores = {
        name: scorer.score([prompt["text"] for prompt in prompts])
        for name, scorer in scorers.items()
    }
    perspective = np.array([prompt["toxicity"] for prompt in prompts])
    pl.Config.set_tbl_cols(-1)
    pl.Config.set_tbl_width_chars(200)
    pl.Config.set_tbl_hide_dataframe_shape(True)
    print(date.today(), "\nagainst Perspective and each other (threshold 0.5):")
    everyone = {"Perspective": perspective, **scores}
    print(agreement({name: values.tolist() for name, values in everyone.items()}))
    labelled = load_labelled("embedded:comments", 2000, seed=0, part="probe", max_words=20)
    print("against human labels:")
    rows = []
    for name, scorer in scorers.items():
        predicted = scorer.score(labelled.texts)
        false = float((predicted[labelled.labels == 0] > 0.5).mean())
        missed = float((predicted[labelled.labels == 1] <= 0.5).mean())
        rows.append(
            (name, len(labelled), float(roc_auc_score(labelled.labels, predicted)), false, missed)
        )
    print(pl.DataFrame(rows, schema=["scorer", "n", "AUC", "false alarms", "missed"], orient="row"))


if __name__ == "__main__":
    main()
