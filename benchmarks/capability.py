"""What else does a method cost? `python benchmarks/capability.py runs/ladder bigbench-1.0.0.tar.gz
--methods gains,rank_one_attention`, on the folder of a `dialdown ladder` with those methods.

Tasks of BIG-bench through lm-eval, each method at the strength that its ladder dialled: accuracy
with its 95 % interval, and the paired difference to the untouched model. The tasks are in the
source distribution of `bigbench`, 358 MB: `pip download --no-deps --no-binary :all: bigbench`.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from numpy.typing import NDArray

from dialdown.evaluation.bootstrap import estimate
from dialdown.files import read_json
from dialdown.models import LM
from dialdown.study import Config
from dialdown.study.context import Workspace
from dialdown.study.ladder_fit import fitted
from dialdown.study.ladder_methods import UNTOUCHED

PLACE = "bigbench-1.0.0/bigbench/benchmark_tasks/{}/task.json"


def write_task(archive: tarfile.TarFile, name: str, folder: Path) -> None:
    """A task of several choices as lm-eval reads it from a folder."""
    member = archive.extractfile(PLACE.format(name))
    assert member is not None
    lines = []
    for example in json.load(member)["examples"]:
        choices, scores = zip(*example["target_scores"].items(), strict=True)
        lines.append({
            "input": example["input"].strip(),
            "choices": choices,
            "right": int(np.argmax(scores)),
        })  # fmt: skip
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "Q: {{input}}\nA:",
        "doc_to_choice": "choices",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML


def right_answers(
    lm: LM, tasks: list[str], manager: TaskManager, limit: int
) -> dict[str, NDArray[np.float64]]:
    """By task, 1 for each question that is answered right and 0 for the others."""
    told: dict[str, Any] = simple_evaluate(
        model=HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=16),
        tasks=tasks,
        task_manager=manager,
        limit=limit,
        bootstrap_iters=0,
    )
    return {task: np.array([line["acc"] for line in told["samples"][task]]) for task in tasks}


def main() -> None:
    """A line for each method and task."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("bigbench", type=Path)
    parser.add_argument("--methods", default="gains,rank_one,rank_one_attention")
    parser.add_argument("--tasks", default="social_iqa,intent_recognition")
    parser.add_argument("--limit", type=int, default=600)
    given = parser.parse_args()
    tasks = given.tasks.split(",")
    work = Workspace(Config(**read_json(given.folder / "run.json")["config"]), given.folder)
    rows = {row["method"]: row for row in read_json(given.folder / "ladder.json")["rows"]}
    usual: dict[str, NDArray[np.float64]] = {}
    with TemporaryDirectory() as place, tarfile.open(given.bigbench) as archive:
        for task in tasks:
            write_task(archive, task, Path(place))
        manager = TaskManager(include_path=place, include_defaults=False)
        for name in (UNTOUCHED, *given.methods.split(",")):
            strength = 1.0 if name == UNTOUCHED else rows[name]["strength"]
            with fitted(work, name)(strength) as (lm, edit), edit.applied(lm):
                answers = right_answers(lm, tasks, manager, given.limit)
            for task, right in answers.items():
                apart = estimate(right - usual.setdefault(task, right))
                print(f"{name:20s} {task:20s} {estimate(right)} ({apart})", flush=True)


if __name__ == "__main__":
    main()
