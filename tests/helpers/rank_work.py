"""What ranks do in tests that start them themselves; ranks import this by its name."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import DistributedType, PartialState

from dialdown import LM, DialdownError, load
from dialdown.data import Pair
from dialdown.progress import progress_to
from dialdown.training import DPOSettings, GainSettings, TrainingLog, train_dpo, train_gains
from dialdown.training.loss import OwnTextKL

from . import tiny

WORDS = ("cat", "dog", "house", "tree", "river", "stone", "cloud", "road", "door", "lamp")
PAIRS = [
    Pair(
        f"the {word} in {other}",
        f" is good and{' very' * (i % 3)} kind",
        " is bad" + " and cruel" * (i % 2 + 1),
    )
    for i, (word, other) in enumerate(zip(WORDS, reversed(WORDS), strict=True))
]
TEXTS = [[3 * i + j for j in range(12)] for i in range(6)]
SETTINGS = DPOSettings(
    learning_rate=1e-3,
    warmup_steps=1,
    batch_size=4,
    epochs=3,
    eval_every=2,
    eval_pairs=2,
    snapshots=1,
)


def base(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A tiny model in a folder, from which ranks load it."""
    tiny.model("llama").to(dtype).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Place:
    """Where a training reads and writes.

    Attributes:
        base: the folder of the model.
        out: the folder of what is trained.
    """

    base: Path
    out: Path

    def dpo(self, settings: DPOSettings = SETTINGS, **given: Any) -> TrainingLog:
        """Train all weights."""
        lm = load(self.base, dtype="float32", device="cpu")
        given = {"base": self.base, **given}
        return train_dpo(lm, PAIRS, settings, self.out / "dpo", **given)

    def dpo_of_16_bits(self) -> TrainingLog:
        """Train all weights of the model in bfloat16, held near it on text of its own."""
        lm = load(self.base, dtype="bfloat16", device="cpu")
        own_kl = OwnTextKL(TEXTS, 2.0, per_step=2)
        out = self.out / "half"
        few = replace(SETTINGS, snapshots=0, max_steps=2)
        return train_dpo(lm, PAIRS, few, out, own_kl=own_kl, base=self.base)

    def gains(self) -> TrainingLog:
        """Train gains, of 8 pairs in batches of 6 and 2."""
        lm = load(self.base, dtype="float32", device="cpu")
        prices = np.full(lm.view.shape, 0.01)
        settings = GainSettings(learning_rate=0.2, batch_size=4, eval_pairs=2, eval_every=2)
        _, log = train_gains(
            lm, PAIRS, settings, self.out / "gains", information=prices, texts=TEXTS
        )
        return log


@dataclass(frozen=True)
class Seen:
    """What a rank of `every_training` saw.

    Attributes:
        gains, half, whole, again: the logs of gains, of a 16-bit model, and of one in float32,
            twice.
        refusal: what it was told when ranks had different seeds.
        parts: bytes of the weights that each rank held, as they wrote them.
    """

    gains: TrainingLog
    half: TrainingLog
    whole: TrainingLog
    again: TrainingLog
    refusal: str
    parts: list[int]


def every_training(place: Place) -> Seen:
    """What a rank does that the launcher started for a test."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    refusal = ""
    try:
        place.dpo(replace(SETTINGS, seed=dist.get_rank()))
    except DialdownError as error:
        refusal = str(error)
    gains = place.gains()
    _share_out_on_processors()
    half = place.dpo_of_16_bits()
    with suppress(KeyboardInterrupt), progress_to(_stop):
        place.dpo()
    written = sorted(place.out.glob(".dpo.training/checkpoint-2/pytorch_model_fsdp_0/*.distcp"))
    parts = [path.stat().st_size for path in written]
    seen = Seen(gains, half, place.dpo(), place.dpo(), refusal, parts)
    dist.destroy_process_group()
    return seen


def _stop(what: str, done: int, total: int) -> None:
    if done == 3:
        raise KeyboardInterrupt


def _share_out_on_processors() -> None:
    """accelerate shards a model over other devices only: make it take the CPUs for such devices."""
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_HPU)
    PartialState.set_device = lambda state: setattr(state, "device", torch.device("cpu"))


def dpo_of_a_rank(lm: LM, base: Path, out: Path, **_: Any) -> TrainingLog:
    """DPO of all weights, as a rank is given it."""
    settings = replace(SETTINGS, max_steps=6)
    return train_dpo(lm, PAIRS, settings, out, base=base)


def gains_of_a_rank(lm: LM, out: Path, **_: Any) -> TrainingLog:
    """Gains, likewise."""
    settings = GainSettings(
        max_steps=6, epochs=9, batch_size=2, eval_pairs=2, eval_every=3, optimizer="adamw"
    )
    return train_gains(lm, PAIRS, settings, out, texts=TEXTS)[1]


def fail(lm: LM, **_: Any) -> None:
    """Work of a rank that raises what no one foresaw."""
    raise ValueError("a cat\nin the tree")
