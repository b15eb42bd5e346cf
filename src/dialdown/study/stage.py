"""The stages of a study and of other commands, each described once: which settings and files it
reads, which files it writes, and how it runs.

What a stage does is in `run`, `detox` and `ladder`; nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from ..models.protocol import Site

StudyStage = Literal[
    "probe",
    "base",
    "pairs",
    "train",
    "activations",
    "neurons",
    "evaluate",
    "gains",
    "step",
    "front",
    "report",
]
STAGES: tuple[str, ...] = get_args(StudyStage)
"""A study's, in order."""
RANK_ONE: dict[str, Site] = {"rank_one": "mlp", "rank_one_attention": "attention"}
"""The stages that train one direction per layer, and where."""

# A bar from its beginning to its end.
WHOLE = (0.0, 1.0)


@dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        settings: the settings it reads, of those that some stage names; every stage depends on all
            others.
        reads: the stages whose files it reads.
        writes: its files in the folder, as patterns; a file that fits several stages belongs to
            that which has it in its record.
        added: whether it adds to finished work, and may do so again with other settings.
        measures: whether it measures rows.
        scores: whether what only rows are measured on counts too: of each row of `base` there is a
            record of its own.
        pieces: whether workers do pieces of it.
        trains: the section of a training that ranks may share.
        lowered: the settings that govern how much memory it takes beside weights.
        bar: where on its bar the work of that name begins, and how much of the bar that is; what
            else is told of does not move it.
    """

    settings: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    added: bool = False
    measures: bool = False
    scores: bool = False
    pieces: bool = False
    trains: str = ""
    lowered: tuple[str, ...] = ()
    bar: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def folder_of(stage: str) -> str:
    """Where a stage of `RANK_ONE` leaves what it trained."""
    return stage.replace("_", "-")


# What a model goes on with, and who scores it.
PROMPTED = ("evaluation", "tuned", "concept", "template")
ROW_MEMORY = ("evaluation.batch_size", "evaluation.window")
ROWS = Stage(measures=True, pieces=True, lowered=ROW_MEMORY)
# Prices and texts from which gains and directions are trained.
PRICES = "gains-*.safetensors"
EDIT, STEP, LABELS = "edit.safetensors", "step.safetensors", "labels.safetensors"
LABELS_RANK_ONE = "labels-rank-one.safetensors"
FRONT_EDITS = "interventions-front"

ALL: dict[str, Stage] = {
    "probe": Stage(writes=("direction-*.safetensors",), lowered=("probe.max_tokens",)),
    "base": replace(
        ROWS,
        settings=PROMPTED,
        reads=("probe",),
        writes=("means-base*.safetensors", "rows/*.json"),
        bar={"decoding": (0.0, 0.1), "evaluating": (0.1, 0.9)},
    ),
    "pairs": Stage(
        settings=(*PROMPTED, "pairs", "training_prompts"),
        reads=("probe",),
        writes=("pairs.jsonl", "pairs/*.json"),
        pieces=True,
        lowered=("pairs.batch_size",),
    ),
    "train": Stage(
        settings=("tuned", "dpo"),
        reads=("pairs",),
        writes=("tuned/**/*", "tuned-steps/**/*"),
        trains="dpo",
        lowered=("dpo.batch_size",),
    ),
    "means": Stage(
        settings=(*PROMPTED, "training_prompts"),
        writes=("means-training*.safetensors",),
        lowered=("evaluation.batch_size",),
    ),
    "activations": Stage(
        settings=PROMPTED,
        reads=("train",),
        writes=("means-tuned*.safetensors",),
        lowered=("evaluation.batch_size",),
    ),
    "neurons": Stage(
        settings=(*PROMPTED, "token_judge", "interventions"),
        reads=("probe", "base", "train", "activations"),
        writes=("neurons*.parquet", "tables/*.csv"),
    ),
    "evaluate": replace(
        ROWS,
        settings=(*PROMPTED, "interventions"),
        reads=("probe", "base", "train", "activations", "neurons"),
        writes=("results.json", "rows/*.json", "interventions/*.safetensors"),
        scores=True,
    ),
    "gains": Stage(
        # It looks whether there is a front.
        settings=("tuned", "gains", "front"),
        reads=("probe", "pairs"),
        writes=("gains/**/*", PRICES, "means-training*.safetensors", "tables/gains-*.csv"),
        added=True,
        trains="gains",
        lowered=("gains.batch_size",),
        bar={"training": WHOLE},
    ),
    **{
        stage: Stage(
            settings=("rank_one",),
            reads=("pairs",),
            writes=(f"{folder_of(stage)}/**/*", PRICES),
            added=True,
            trains="rank_one",
            lowered=("rank_one.batch_size",),
            bar={"training": WHOLE},
        )
        for stage in RANK_ONE
    },
    "step": Stage(
        settings=("gains",),
        reads=("pairs", "gains"),
        writes=(STEP, PRICES),
        added=True,
        bar={"following": WHOLE},
    ),
    "labels": Stage(writes=(LABELS, PRICES), added=True, bar={"reading": WHOLE}),
    "labels_rank_one": Stage(writes=(LABELS_RANK_ONE, PRICES), added=True, bar={"learning": WHOLE}),
    "front": replace(
        ROWS,
        settings=(*PROMPTED, "front", "interventions"),
        reads=("probe", "base", "train", "activations", "neurons", "gains", "step"),
        writes=("front.json", "rows-front/*.json", f"{FRONT_EDITS}/*.safetensors"),
        added=True,
    ),
    "dial": Stage(
        settings=(*PROMPTED, "detox"),
        reads=("probe", "pairs", "means", "gains", *RANK_ONE, "step", "labels", "labels_rank_one"),
        writes=(EDIT, "tables/gains-*.csv", "tables/rank-one-*.csv"),
        added=True,
        scores=True,
        lowered=("evaluation.window",),
    ),
    "check": replace(
        ROWS,
        settings=(*PROMPTED, "detox"),
        reads=("dial",),
        writes=("results.json", "rows-check/*.json"),
        added=True,
        scores=True,
    ),
    "fit": Stage(
        settings=(
            *(*PROMPTED, "training_prompts", "interventions"),
            *("dpo", "gains", "rank_one", "ladder"),
        ),
        reads=("probe", "pairs"),
        writes=(
            "methods/**/*",
            "gains/**/*",
            *(f"{folder_of(stage)}/**/*" for stage in RANK_ONE),
            *(PRICES, STEP, LABELS, LABELS_RANK_ONE, "means-training*.safetensors"),
        ),
        added=True,
        pieces=True,
        lowered=("gains.batch_size", "probe.max_tokens"),
        bar={"fitting": WHOLE},
    ),
    "compare": replace(
        ROWS,
        settings=(*PROMPTED, "training_prompts", "ladder"),
        reads=("fit",),
        writes=("rows-ladder/*.json", "ladder.*"),
        added=True,
        scores=True,
    ),
    "report": Stage(
        reads=STAGES[:-1], writes=("figures/*", "report.html", "tables/*.csv"), added=True
    ),
}
NAMED_SETTINGS = {name for stage in ALL.values() for name in stage.settings}
"""The settings that not every stage depends on."""
ADDED = {name for name, stage in ALL.items() if stage.added}
MEASURING = {name for name, stage in ALL.items() if stage.measures}
