"""What every scorer does alike: blank texts, and batches by length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.reading import whole_text
from ..models.memory import halving
from ..progress import silently

Scores = NDArray[np.float64]

# Texts in a forward pass on a CPU, where more only adds padding.
BATCH = 32


def of_texts(texts: Sequence[str], score: Callable[[list[str]], Scores]) -> Scores:
    """Scores of the texts that say something; a blank one is 0, as silence insults nobody."""
    result = np.zeros(len(texts))
    rows = [row for row, text in enumerate(texts) if whole_text(text, f"Text {row}").strip()]
    if rows:
        with silently():
            result[rows] = score([texts[row] for row in rows])
    return result


def together(
    work: Callable[[int], NDArray[Any]], texts: Sequence[str], device: torch.device
) -> NDArray[Any]:
    """What `work` makes of texts with so many in a forward pass, fewer where memory runs out."""
    size = BATCH if device.type == "cpu" else 8 * BATCH
    return halving(size, work, most=len(texts))


def batches(
    tokenizer: Any, texts: Sequence[str], device: torch.device, longest: int, size: int
) -> Iterator[tuple[NDArray[np.intp], Any]]:
    """Row numbers and padded inputs, by length, so that little of a batch is padding."""
    order = np.argsort([len(text) for text in texts], kind="stable")
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        batch = [texts[row] for row in rows]
        inputs = tokenizer(
            batch, return_tensors="pt", padding=True, truncation=True, max_length=longest
        )
        yield rows, inputs.to(device)
