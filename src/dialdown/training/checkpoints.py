"""When a training saves and reports, and which of its checkpoints it goes on from."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..errors import DialdownError
from ..files import damaged, seal
from ..progress import progress
from . import ranks

SAVE_SHARE = 0.05
SAVE_EVERY_SECONDS = 60.0


class Pace(TrainerCallback):
    """Report each step, stop at a loss that is not a number, and save often enough to resume from.

    A checkpoint is written when a minute has passed since the last one, or later where writing
    takes long, so that saving costs at most a twentieth of the time; transformers itself writes one
    at every validation.
    """

    def __init__(self) -> None:
        self.saved = self.began_saving = time.perf_counter()
        self.wait = SAVE_EVERY_SECONDS

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved = time.perf_counter()
        self._report(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._report(state)
        # No two ranks have the same clock, and all have to save at once.
        if ranks.of_main(lambda: time.perf_counter() - self.saved > self.wait):
            control.should_save = True
        if state.global_step >= state.max_steps:
            # Older releases of transformers stop without a validation.
            control.should_evaluate = control.should_save = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step < state.max_steps:
            # Patience ended it, and nothing is left to do.
            progress("training", state.max_steps, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began_saving = time.perf_counter()
        loss = kwargs["logs"].get("loss", kwargs["logs"].get("eval_loss", 0.0))
        if not math.isfinite(loss):
            raise DialdownError(
                f"The loss of DPO is {loss} at step {state.global_step}: lower learning_rate, or "
                "use float32."
            )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        ranks.wait()
        ranks.on_main(lambda: seal(checkpoint))
        self.saved = time.perf_counter()
        self.wait = max(SAVE_EVERY_SECONDS, (self.saved - self.began_saving) / SAVE_SHARE)

    def _report(self, state: Any) -> None:
        progress("training", state.global_step, state.max_steps)


class Snapshots(TrainerCallback):
    """Hand out the model and the step at evenly spaced places of the training, the end not among
    them.
    """

    def __init__(self, count: int, snapshot: Callable[[Any, int], None]) -> None:
        self.count, self.snapshot = count, snapshot

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        places = {
            round(state.max_steps * place / (self.count + 1)) for place in range(1, self.count + 1)
        }
        if state.global_step in places - {state.max_steps}:
            self.snapshot(kwargs["model"], state.global_step)


def last_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that is as it was written, as is the best one so far; others are
    removed.
    """
    checkpoints = sorted(
        work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True
    )
    best = {checkpoint: _best(checkpoint) for checkpoint in checkpoints}
    for checkpoint, best_then in best.items():
        if best_then is not None and best.get(best_then) is not None:
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def _best(checkpoint: Path) -> Path | None:
    """The checkpoint that was the best one when this was written, or this itself; None where this
    is not whole.
    """
    if damaged(checkpoint):
        return None
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return Path(state["best_model_checkpoint"] or checkpoint)
