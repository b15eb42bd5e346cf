"""The head is multiplied once for a whole batch, wherever the last positions are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dialdown as dd
from dialdown.data import Pair
from dialdown.models import LM, Decoder, neuron_hooks
from dialdown.models.decoding import batches, read
from dialdown.models.forward_pass import last_positions
from dialdown.training import preference_gradient
from helpers import tiny

TEXTS = [f"{word} good nice the cat in" for word in ("a", "why", "very", "bad")] * 5
LABELS = [0, 1] * 10


class HeadProducts(TorchDispatchMode):
    """Counts the products with the head by whether they are one matrix or one for each text, as
    they are of a tensor that is not contiguous.
    """

    def __init__(self, lm: LM) -> None:
        super().__init__()
        self.width = len(lm.view.unembedding.weight)
        self.together, self.by_text = 0, 0

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = call(*args, **(kwargs or {}))
        # Where nothing needs a gradient the layer is seen whole, else what it is made of.
        products = ("aten::linear", "aten::mm", "aten::addmm", "aten::bmm")
        if call._schema.name in products and out.shape[-1] == self.width:
            given = args[call._schema.name == "aten::addmm"]
            once = call._schema.name != "aten::bmm" and given.is_contiguous()
            self.together += once
            self.by_text += not once
        return out


def pairs_gradient(lm: LM) -> None:
    preference_gradient(lm, [Pair(text, " good", " very bad") for text in TEXTS])


@pytest.mark.parametrize(
    "work",
    [
        lambda lm: Decoder(lm, TEXTS, max_new_tokens=2).run(),
        lambda lm: Decoder(lm, TEXTS, max_new_tokens=2, share_prefixes=False).run(),
        lambda lm: dd.train_probe(lm, TEXTS, LABELS),
        pairs_gradient,
    ],
    ids=["decoding", "decoding without prefixes", "probe", "gains"],
)
def test_no_text_has_a_product_of_its_own(lm: LM, work: Callable[[LM], Any]) -> None:
    with HeadProducts(lm) as counted:
        work(lm)
    assert counted.together
    assert not counted.by_text


def test_the_last_positions_are_those_that_a_number_gives(lm: LM) -> None:
    ids = tiny.random_ids(3, 7)
    with torch.inference_mode():
        by_number = lm.model(input_ids=ids, logits_to_keep=4).logits
        by_index = lm.model(input_ids=ids, logits_to_keep=last_positions(4, lm.device)).logits
    torch.testing.assert_close(by_index, by_number)


def test_every_layer_sees_every_position(lm: LM) -> None:
    """Given a number, Gemma 4 leaves out what its last layers need not compute for the logits."""
    (batch,) = batches(lm, tiny.random_ids(3, 7).tolist(), 3)
    seen: list[tuple[int, ...]] = []
    with torch.inference_mode(), neuron_hooks(lm, lambda layer, m: seen.append(tuple(m.shape))):
        read(lm, batch)
    assert seen == [(3, 7, lm.view.n_neurons)] * lm.view.n_layers
