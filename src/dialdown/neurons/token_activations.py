"""The activations of one layer's neurons at every token of some texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DialdownError
from ..models.decoding import batches, read
from ..models.hooks import neuron_hooks
from ..models.lm import LM


def token_activations(
    lm: LM, encoded: Sequence[Sequence[int]], layer: int, *, batch_size: int = 16
) -> list[NDArray[np.float32]]:
    """What each neuron of a layer does while the model reads texts, token ids of each, none of them
    empty: for each text (tokens, F) float32. There must be such a layer (DialdownError).
    """
    if not 0 <= layer < lm.view.n_layers:
        raise DialdownError(
            f"{lm.name} has no layer {layer}: pass a number from 0 to {lm.view.n_layers - 1}."
        )
    kept: list[Tensor] = []

    def keep(index: int, m: Tensor) -> None:
        kept.append(m.float().cpu())

    rows: list[NDArray[np.float32]] = [np.empty((0, 0), np.float32)] * len(encoded)
    with neuron_hooks(lm, keep, [layer]), torch.inference_mode():
        for batch in batches(lm, encoded, batch_size):
            read(lm, batch)
            # Padding is on the left.
            for row, m in zip(batch.rows, kept.pop(), strict=True):
                rows[row] = m[-len(encoded[row]) :].numpy()
    return rows
