"""Where attention writes the residual stream, in every architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dialdown import DialdownError
from dialdown.models import LM, Projection
from dialdown.models.sites import projections
from helpers import tiny


def seen(lm: LM, projection: Projection) -> tuple[torch.Tensor, ...]:
    """What one layer reads, what its projection writes, and what the layer passes on."""
    parts: list[torch.Tensor] = []

    def read(module: nn.Module, args: Any, kwargs: Any) -> None:
        parts.append(args[0] if args else kwargs["hidden_states"])

    def write(module: nn.Module, args: Any, out: Any) -> None:
        parts.append(out[0] if isinstance(out, tuple) else out)

    layer = lm.model.get_submodule(projection.decoder_layer)
    handles = [
        layer.register_forward_pre_hook(read, with_kwargs=True),
        projection.linear.register_forward_hook(write),
        layer.register_forward_hook(write),
    ]
    tiny.logits(lm, tiny.random_ids(2, 6))
    for handle in handles:
        handle.remove()
    return tuple(parts)


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_what_attention_adds_is_what_its_projection_writes(name: str) -> None:
    lm = tiny.lm(name)
    # Without what else writes, a layer adds what attention does.
    for layer in lm.view.layers:
        parts = dict(lm.model.get_submodule(layer.decoder_layer).named_modules())
        for linear in (layer.linear, parts.get("per_layer_projection")):
            for weight in linear.parameters() if linear else ():
                nn.init.zeros_(weight)
    for index, projection in enumerate(projections(lm, "attention")):
        before, written, after = seen(lm, projection)
        if projection.post_norm is not None:
            written = projection.post_norm(written)
        added = lm.view.residual_multiplier * written
        torch.testing.assert_close(after - before, added, atol=1e-5, rtol=1e-4)
        assert index == int(projection.decoder_layer.rpartition(".")[2])


def unknown(model: Any) -> None:
    attention = model.model.layers[1].self_attn
    attention.out, attention.o_proj = attention.o_proj, None


def quantised(model: Any) -> None:
    weight = model.model.layers[1].self_attn.o_proj.weight
    weight.requires_grad_(False)
    weight.data = weight.data.to(torch.int8)


def wider(model: Any) -> None:
    model.model.layers[1].self_attn.o_proj = nn.Linear(2 * tiny.WIDTH, tiny.WIDTH)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (unknown, r"model\.layers\.1 of .* has no output projection of attention that dialdown"),
        (quantised, r"model\.layers\.1\.self_attn\.o_proj of .* not a plain matrix"),
        (wider, "output projections of different shapes"),
    ],
)
def test_what_is_no_site_is_one_sentence(change: Callable[[Any], None], sentence: str) -> None:
    lm = tiny.lm("llama")
    change(lm.model)
    with pytest.raises(DialdownError, match=sentence):
        projections(lm, "attention")
    assert projections(lm, "mlp") is lm.view.layers
