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
from .stage import LABELS, LABELS_RANK_ONE, RANK_ONE, STEP, folder_of

WRITERS: dict[Site, str] = {"mlp": "MLPs write", "attention": "attention writes"}


class Method(NamedTuple):
    """A way to an edit: the stage that makes it, the file where it leaves it, the site whose layers
    have a direction more, or None for one number per neuron, whether it is trained, and whether
    pairs or labelled texts say what is wanted.
    """

    make: Callable[[Workspace], Facts]
    file: str
    site: Site | None = None
    trained: bool = True
    paired: bool = True

    @property
    def explain(self) -> Callable[[Workspace, Intervention], Facts]:
        """How the edit reads, as tables and facts."""
        return rank_one.explain_rank_one if self.site else gains.explain

    @property
    def made_of(self) -> str:
        """What the edit consists of."""
        if self.site is None:
            return "one number per MLP neuron"
        return f"one more direction per layer, where {WRITERS[self.site]}"


METHODS: dict[str, Method] = {
    "gains": Method(gains.tune_gains, gains.TRAINED),
    **{
        stage: Method(
            partial(rank_one.tune_rank_one, stage=stage),
            f"{folder_of(stage)}/{RANK_ONE_FILE}",
            site,
        )
        for stage, site in RANK_ONE.items()
    },
    "step": Method(gains.take_step, STEP, trained=False),
    "labels": Method(gains.take_step_from_labels, LABELS, trained=False, paired=False),
    "labels_rank_one": Method(
        rank_one.learn_from_labels, LABELS_RANK_ONE, "attention", paired=False
    ),
}
