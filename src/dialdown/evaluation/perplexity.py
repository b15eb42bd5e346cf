"""Log-perplexity and KL to the base model on reference text, from the same forward pass (METHOD §5,
§6).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DialdownError
from ..models.hooks import Change, Positions, acted_on
from ..models.kl import kl_divergence
from ..models.lm import LM

# The unit that is resampled for the interval of log-perplexity and KL. Windows are too few where
# the text is short, and tokens depend on their neighbours.
BLOCK = 32


@dataclass(frozen=True)
class TextMeasure:
    """By block of `BLOCK` successive positions, each read in its whole window.

    Attributes:
        nll: (blocks,) float64, mean negative log-likelihood per predicted token, in nats.
        tokens: (blocks,) predicted tokens.
        kl: (blocks,) float64, mean KL(base || model) per position, in nats; only of the first
            `kl_windows` windows.
    """

    nll: NDArray[np.float64]
    tokens: NDArray[np.int64]
    kl: NDArray[np.float64]


class ReferenceText:
    """Measures models and interventions on the same windows, against one base model.

    The base model's log-probabilities of the first `kl_windows` windows are kept (float32, window x
    V each).

    Raises:
        DialdownError: an intervention acts on the base model right now.
    """

    def __init__(self, base: LM, windows: Sequence[Sequence[int]], *, kl_windows: int) -> None:
        if acted_on(base):
            raise DialdownError(
                f"An intervention acts on {base.name} right now, so what others are compared with "
                "would be the edited model's: measure a first row outside of `applied`."
            )
        self.windows = [torch.tensor([list(ids)], device=base.device) for ids in windows]
        self._base = [
            torch.log_softmax(self._logits(base, ids).float(), dim=-1)
            for ids in self.windows[:kl_windows]
        ]

    def measure(
        self, lm: LM, intervention: Change | None = None, *, positions: Positions = "all"
    ) -> TextMeasure:
        """One forward pass per window."""
        nll: list[float] = []
        tokens: list[int] = []
        kl: list[float] = []
        context = intervention.measured(lm, positions=positions) if intervention else nullcontext()
        with context:
            for index, ids in enumerate(self.windows):
                base = self._base[index] if index < len(self._base) else None
                by_position = _by_position(self._logits(lm, ids), ids[0, 1:], base)
                of_window = [torch.split(values, BLOCK) for values in by_position]
                tokens += [len(block) for block in of_window[0] if len(block)]
                nll += [float(block.mean()) for block in of_window[0] if len(block)]
                kl += [float(block.mean()) for block in of_window[1] if len(block)]
        if not np.isfinite(nll).all():
            # An edit is blamed only where the model without it is sound.
            edited = intervention is not None and all(
                self._logits(lm, ids).isfinite().all() for ids in self.windows
            )
            name = f"{lm.name} under {intervention.name}" if intervention and edited else lm.name
            way_out = "load the model in float32 or bfloat16" + (
                ", or use a weaker edit" if edited else ""
            )
            raise DialdownError(
                f"The log-perplexity of {name} is not finite: the activations overflow; {way_out}."
            )
        return TextMeasure(np.array(nll), np.array(tokens), np.array(kl))

    @staticmethod
    def _logits(lm: LM, ids: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = lm.model(input_ids=ids, use_cache=False).logits[0]
            return logits


def _by_position(logits: Tensor, following: Tensor, base: Tensor | None) -> tuple[Tensor, Tensor]:
    """The negative log-likelihood of each of the n following tokens, (n,), and the KL to the base
    model at each of their positions, (n,) or (0,) without a base: float64, on the CPU.
    """
    # What belongs to a position stays in a processor's cache; a GPU has too little to do in a block
    # of that size, and is asked for its results once a window.
    step = BLOCK if logits.device.type == "cpu" else 8 * BLOCK
    # A window of one token has none that follows.
    nll = [logits.new_zeros(0, dtype=torch.float64)]
    kl = [logits.new_zeros(0, dtype=torch.float64)]
    for start in range(0, len(following), step):
        block = slice(start, min(start + step, len(following)))
        log_probs = torch.log_softmax(logits[block].float(), dim=-1)
        nll.append(-log_probs.gather(-1, following[block, None])[:, 0].double())
        if base is not None:
            # Rounding makes the KL of nearly equal distributions slightly negative.
            per_position = kl_divergence(base[block], log_probs, dtype=torch.float64)
            kl.append(per_position.clamp(min=0))
    return torch.cat(nll).cpu(), torch.cat(kl).cpu()
