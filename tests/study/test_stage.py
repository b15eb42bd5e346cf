"""What is declared of a stage is what it does: a setting that it reads and does not name would let
a folder hold numbers of other settings without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dialdown.study import Config, Study, load_config
from dialdown.study.context import Stages, Workspace
from dialdown.study.detox import detox_stages
from dialdown.study.detox_methods import METHODS
from dialdown.study.folder import Ledger
from dialdown.study.ladder import STAGES as LADDER
from dialdown.study.run import STUDY
from dialdown.study.stage import ALL, NAMED_SETTINGS

FRONT = {"front.count": 4, "front.gains": [1.0], "front.kept": [0.1], "front.step": [1.0]}
COMMANDS: dict[str, tuple[Stages, dict[str, Any]]] = {
    "run": (STUDY, {**FRONT, "interventions.extent": "conclusions"}),
    "ladder": (LADDER, {"ladder.methods": "aura,gains,rank_one,dpo_kl", "ladder.prompts": 6}),
    "ladder of labels": (
        {name: stage for name, stage in LADDER.items() if name != "pairs"},
        {"ladder.methods": "aura", "ladder.prompts": 6},
    ),
    **{
        f"detox --method {method}": (detox_stages(method), {"detox.method": method})  # type: ignore[arg-type]
        for method in METHODS
    },
}
# Rows of the base model have a record each, so other interventions leave what is done; and which
# prompts are left for training does not change those of the evaluation.
APART = {"base": {"interventions", "training_prompts"}}


class Watched(Config):
    """Settings that know which of them were read."""

    read: ClassVar[set[str]] = set()

    def __getattribute__(self, name: str) -> Any:
        Watched.read.add(name)
        return super().__getattribute__(name)


def settings_of(command: str, study_file: Path, further: Mapping[str, Any] = {}) -> Config:
    flags = {"ladder.texts": [str(study_file.parent / "text.txt")], **COMMANDS[command][1]}
    return load_config(file=study_file, flags={**flags, **further})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_stage_reads_no_setting_that_it_does_not_name(
    command: str, study_file: Path, tmp_path: Path
) -> None:
    stages, reads = COMMANDS[command][0], dict[str, set[str]]()

    def watched(name: str, do: Callable[[Workspace], Any]) -> Callable[[Workspace], Any]:
        def stage(work: Workspace) -> Any:
            # What an earlier stage loaded would hide that this one reads it.
            alone = Workspace(work.config, work.folder, work.stages)
            # Which template a model has is a matter of the prompts, and `probe` has none.
            _ = alone.lm
            Watched.read.clear()
            facts = do(alone)
            reads[name] = Watched.read & NAMED_SETTINGS
            return facts

        return stage

    config = Watched(**settings_of(command, study_file).model_dump())
    Study(config, tmp_path / "out", stages={n: watched(n, do) for n, do in stages.items()}).run()
    assert reads.keys() == stages.keys()
    named: set[str] = set()
    for name, read in reads.items():
        named |= {*ALL[name].settings}
        assert read <= named | APART.get(name, set()), name


@pytest.mark.parametrize(
    ("command", "setting", "value", "from_stage"),
    [
        ("detox --method labels", "evaluation.count", 9, "means"),
        ("detox --method labels", "template", "chat", "means"),
        ("detox --method labels", "training_prompts", "elsewhere", "means"),
        ("detox --method labels", "evaluation.judge", "another", "dial"),
        ("detox --method labels", "gains.damping", 0.5, None),
        ("detox --method step", "gains.damping", 0.5, "step"),
        ("ladder of labels", "training_prompts", "elsewhere", "fit"),
        ("ladder", "training_prompts", "elsewhere", "pairs"),
        ("run", "interventions.toxic_neurons", 4, "neurons"),
    ],
)
def test_a_stage_is_not_done_with_other_settings(
    command: str, setting: str, value: Any, from_stage: str | None, study_file: Path, tmp_path: Path
) -> None:
    stages = tuple(COMMANDS[command][0])
    before = settings_of(command, study_file)
    after = settings_of(command, study_file, {setting: value})
    first, second = (Ledger(config, tmp_path, stages) for config in (before, after))
    changed = [stage for stage in stages if first.inputs(stage) != second.inputs(stage)]
    assert changed == ([] if from_stage is None else [*stages[stages.index(from_stage) :]])


def test_another_judge_measures_the_base_anew_and_trains_nothing_anew(
    study_file: Path, tmp_path: Path
) -> None:
    before = settings_of("run", study_file)
    after = settings_of("run", study_file, {"evaluation.judge": "another"})
    first, second = (Ledger(config, tmp_path, tuple(STUDY)) for config in (before, after))
    assert first.inputs("base") != second.inputs("base")
    assert first.inputs("train") == second.inputs("train")
