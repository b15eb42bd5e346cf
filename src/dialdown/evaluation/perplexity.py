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

from ..data.reading import whole_text
from ..errors import DialdownError
from ..models.hooks import Change, Positions
from ..models.lm import LM, Protocol

# The unit that is resampled for the interval of log-perplexity and KL. Windows are too few where
# the text is short, and tokens depend on their neighbours.
BLOCK = 32


@dataclass(frozen=True)
class TextMeasure:
    """Results by block: `BLOCK` successive positions of a window, each read in the context of its
    whole window.

    Attributes:
        nll: (blocks,) float64, mean negative log-likelihood per predicted token, in nats.
        tokens: (blocks,) predicted tokens.
        kl: (blocks,) float64, mean KL(base || model) per position, in nats; only of the first
            `kl_windows` windows.
    """

    nll: NDArray[np.float64]
    tokens: NDArray[np.int64]
    kl: NDArray[np.float64]


def text_windows(
    lm: LM, text: str, *, protocol: Protocol, window: int, max_windows: int
) -> list[list[int]]:
    """Cut a text into windows of `window` tokens: `strict` starts each with the model's BOS,
    `paper` the first at most.

    Raises:
        DialdownError: the window exceeds the context, or the text has fewer than two tokens.
    """
    if window > lm.context:
        raise DialdownError(
            f"A window of {window} tokens exceeds the context of {lm.name} ({lm.context}): pass a "
            "smaller window."
        )
    # One very long text is what a tokenizer warns about; it is cut into windows right below.
    whole_text(text, "The reference text")
    ids: list[int] = lm.tokenizer(text, add_special_tokens=protocol == "paper", verbose=False)[
        "input_ids"
    ]
    start = lm.bos if protocol == "strict" else []
    step = window - len(start)
    windows = [[*start, *ids[at : at + step]] for at in range(0, len(ids), step)][:max_windows]
    if protocol == "strict" or len(windows) == 1:
        # A last window of one token predicts nothing; under `paper` that token is among those the
        # sum is divided by.
        windows = [ids for ids in windows if len(ids) > 1]
    if not windows:
        raise DialdownError(
            "The reference text has fewer than two tokens, so it has no perplexity: pass a longer "
            "text."
        )
    return windows


class TextProbe:
    """Measures models and interventions on the same windows, against one base model's
    distributions.

    The base model's log-probabilities of the first `kl_windows` windows are kept (float32, window x
    V each).
    """

    def __init__(self, base: LM, windows: Sequence[Sequence[int]], *, kl_windows: int) -> None:
        self.windows = [torch.tensor([list(ids)], device=base.device) for ids in windows]
        self._base = [
            torch.log_softmax(self._logits(base, ids).float(), dim=-1)
            for ids in self.windows[:kl_windows]
        ]

    def measure(
        self, lm: LM, intervention: Change | None = None, *, positions: Positions = "all"
    ) -> TextMeasure:
        """One forward pass per window.

        Raises:
            DialdownError: the log-likelihood of a window is not a finite number.
        """
        nll: list[float] = []
        tokens: list[int] = []
        kl: list[float] = []
        context = intervention.measured(lm, positions=positions) if intervention else nullcontext()
        with context:
            for index, ids in enumerate(self.windows):
                logits = self._logits(lm, ids)
                base = self._base[index] if index < len(self._base) else None
                # Block by block, so that what belongs to a position stays in the processor's cache.
                for start in range(0, len(logits) - 1, BLOCK):
                    block = slice(start, min(start + BLOCK, len(logits) - 1))
                    log_probs = torch.log_softmax(logits[block].float(), dim=-1)
                    picked = log_probs.gather(-1, ids[0, 1:][block, None]).double()
                    nll.append(-float(picked.mean()))
                    tokens.append(len(picked))
                    if base is not None:
                        kl.append(float(kl_per_position(base[block], log_probs).mean()))
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


def kl_per_position(base: Tensor, other: Tensor) -> Tensor:
    """KL(base || other) at each position from (positions, V) log-probabilities: (positions,)
    float64, in nats.
    """
    # A token that the base model rules out counts nothing, also where the other one rules it out
    # too (-inf - -inf).
    terms = torch.where(base == -torch.inf, 0.0, base.exp() * (base - other))
    # Rounding makes the KL of nearly equal distributions slightly negative, which no KL is.
    return terms.sum(-1, dtype=torch.float64).clamp(min=0)
