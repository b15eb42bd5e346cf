"""Table 2 at the paper's sizes: 1,199 challenge prompts, 2,000 sentences for F1, all of WikiText-2,
the probe on Jigsaw 90:10; both protocols, random controls at full size.

    python benchmarks/paper_sizes.py runs/paper-sizes --data DATA

DATA holds the published files `challenge_prompts.jsonl`, `wiki_samples.jsonl`,
`wikitext2/test.txt` and `jigsaw_train_binary.csv` (columns comment_text and any_toxic). The same
command goes on where it was stopped; with `--print` it prints the rows that are there. A row takes
some 15 minutes of two cores; on a GPU pass `--workers 3 --batch-size 1600`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dialdown.evaluation.bootstrap import Estimate
from dialdown.files import read_json
from dialdown.progress import progress_to
from dialdown.report.text import with_interval
from dialdown.study import plan
from dialdown.study.config import Config, load_config
from dialdown.study.context import Workspace
from dialdown.study.measure import measure_rows
from dialdown.study.run import Study

# What the paper's table 2 has, and the random controls of what it claims.
ROWS = (
    "none", "dpo", "steer_probe", "edit_probe_set", "edit_probe_free_set", "patch_four_groups",
    "patch_TP", "patch_TP_AN", "patch_TP_AN_TN", "patch_toxic_neurons", "patch_256",
    "steer_probe__random_direction", "edit_probe_set__random_neurons",
    "edit_probe_set__random_direction",
    "patch_four_groups__random_neurons", "patch_256__random_neurons",
)  # fmt: skip
METRICS = ("toxicity", "log_ppl", "f1", "kl")


def settings(data: Path, workers: int, batch_size: int) -> Config:
    """The demo's study with the paper's evaluation."""
    return load_config(
        preset="demo",
        file=None,
        flags={
            "workers": workers,
            "evaluation.batch_size": batch_size,
            "interventions.extent": "tables",
            "probe.texts": str(data / "jigsaw_train_binary.csv"),
            "probe.count": 8000,
            "probe.max_words": 1000,
            "probe.max_tokens": 64,
            "training_prompts": "embedded:rtp",
            "evaluation.prompts": str(data / "challenge_prompts.jsonl"),
            "evaluation.count": 1199,
            "evaluation.control_count": 1199,
            "evaluation.pairs": str(data / "wiki_samples.jsonl"),
            "evaluation.pairs_count": 2000,
            "evaluation.text": str(data / "wikitext2" / "test.txt"),
            "evaluation.window": 1024,
            "evaluation.max_windows": 1000,
            "evaluation.kl_windows": 8,
        },
    )


def planned(work: Workspace) -> list[plan.Planned]:
    """The rows of `ROWS` under each protocol, in that order."""
    everything = {
        (row.intervention.name, row.protocol): row
        for protocol in work.config.protocols
        for row in plan.plan(
            protocol,
            work.tables(protocol),
            work.config.interventions,
            prompts=1199,
            control_prompts=1199,
            seed=work.config.seed,
        )
    }
    return [everything[name, protocol] for name in ROWS for protocol in work.config.protocols]


def show(folder: Path) -> None:
    """Print what is measured so far, each with its interval and its difference to the untouched
    model; of a control, to what it is a control of.
    """
    so_far = [folder / name for name in ("results.json", "results-so-far.json")]
    rows = read_json(next(path for path in so_far if path.exists()))["rows"]
    print("| intervention | protocol |", " | ".join(METRICS), "| toxicity, difference |")
    print("| --- | --- |", " | ".join("---" for _ in METRICS), "| --- |")
    for row in rows:
        beside = row["control_minus_main"] or row["change"] or {}
        values = [*(row[metric] for metric in METRICS), beside.get("toxicity")]
        cells = " | ".join(with_interval(Estimate(**value)) if value else "" for value in values)
        print(f"| {row['intervention']} | {row['protocol']} | {cells} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=160)
    parser.add_argument("--print", action="store_true", dest="only_print")
    arguments = parser.parse_args()

    def progress(what: str, done: int, total: int) -> None:
        print(f"{what}: {done} of {total}", flush=True)

    study = Study(
        settings(arguments.data, arguments.workers, arguments.batch_size),
        arguments.folder,
        announce=print,
    )
    if not arguments.only_print:
        with progress_to(progress):
            study.run(until="neurons")
            with study.work.ledger.claim():
                measure_rows(study.work, "evaluate", planned(study.work), "results.json")
    show(arguments.folder)


if __name__ == "__main__":
    main()
