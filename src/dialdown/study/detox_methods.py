"""The ways of `detox` to an edit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ..interventions.intervention import Intervention
from ..models.protocol import Site
from ..training.settings import RANK_ONE_FILE
from . import gains, rank_one
from .context import Facts, Workspace
from .stage import LABELS, RANK_ONE, STEP, folder_of


class Method(NamedTuple):
    """A way to an edit: the stage that makes it, the file where it leaves it, how the edit reads as
    tables and facts, what it consists of, whether it is trained, and whether pairs or labelled
    texts say what is wanted.
    """

    make: Callable[[Workspace], Facts]
    file: str
    explain: Callable[[Workspace, Intervention], Facts]
    made_of: str
    trained: bool = True
    paired: bool = True


WRITERS: dict[Site, str] = {"mlp": "MLPs write", "attention": "attention writes"}
METHODS: dict[str, Method] = {
    "gains": Method(gains.tune_gains, gains.TRAINED, gains.explain, "one number per MLP neuron"),
    **{
        stage: Method(
            partial(rank_one.tune_rank_one, stage=stage),
            f"{folder_of(stage)}/{RANK_ONE_FILE}",
            rank_one.explain_rank_one,
            f"one more direction per layer, where {WRITERS[site]}",
        )
        for stage, site in RANK_ONE.items()
    },
    "step": Method(
        gains.take_step, STEP, gains.explain, "one number per MLP neuron", trained=False
    ),
    "labels": Method(
        gains.take_step_from_labels,
        LABELS,
        gains.explain,
        "one number per MLP neuron",
        trained=False,
        paired=False,
    ),
}
