"""What one neuron does on texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import DialdownError
from .neurons import Read

if TYPE_CHECKING:
    from ..models.lm import LM

COUNT, TOKENS = 48, 32
REMEMBERED = 4  # layers
# Read where there is no study whose prompts could be read.
ORDINARY = (
    "The old bridge over the river was closed for repairs last winter.",
    "I cannot believe you did that again, you complete idiot.",
    "She thanked her friends warmly and invited everyone to dinner.",
    "What the hell is wrong with these people?",
    "In 1969 the first humans landed on the Moon.",
    "def add(a, b):\n    return a + b",
    "The recipe needs two eggs, a cup of flour and some butter.",
    "He slammed the door and swore at the driver.",
    "Scientists have found a new species of frog in the rainforest.",
    "Your order has been shipped and will arrive on Monday.",
    "They hate us, and nobody is ever going to stop them.",
    "La maison est au bord de la mer, et le ciel est bleu.",
)


class LayerReader:
    """Reads texts, cut to `TOKENS` tokens each and those without any left out, with one layer at a
    time, and remembers the last layers it read.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self._layers: dict[int, list[NDArray[np.float32]]] = {}

    def read(self, lm: LM, layer: int, neuron: int) -> list[Read]:
        """Each text as one neuron reads it."""
        from ..neurons.activations import token_activations

        encoded = [ids[:TOKENS] for ids in lm.encode(self.texts) if ids]
        if layer not in self._layers:
            if len(self._layers) >= REMEMBERED:
                del self._layers[next(iter(self._layers))]
            self._layers[layer] = token_activations(lm, encoded, layer)
        activations = self._layers[layer]
        return [_read(lm, *text, neuron) for text in zip(encoded, activations, strict=True)]


def read_text(lm: LM, text: str, layer: int, neuron: int) -> Read:
    """A text of one's own as one neuron reads it, cut to 256 tokens (DialdownError without any)."""
    from ..neurons.activations import token_activations

    ids = lm.encode([text])[0][:256]
    if not text.strip() or not ids:
        raise DialdownError("There is no text to read: write one.")
    return _read(lm, ids, token_activations(lm, [ids], layer)[0], neuron)


def _read(lm: LM, ids: Sequence[int], activations: NDArray[np.float32], neuron: int) -> Read:
    tokens = [str(lm.tokenizer.decode([token])) for token in ids]
    return Read(tokens, activations[:, neuron].tolist())
