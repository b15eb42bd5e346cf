"""How what an MLP writes, and what steers, reaches the final residual stream, where architectures
differ (METHOD §1, §4).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
import torch
import transformers

import dialdown as dd
from dialdown import DialdownError
from dialdown.interventions.explain import importance
from dialdown.models import LM
from helpers import tiny
from helpers.edits import make

PROMPT = "the cat sat on"


def unusual(name: str) -> LM:
    """A model that not every transformers has."""
    known = {**tiny.NAMED, **tiny.FREE, **tiny.NEWER, **tiny.UNUSUAL}
    if not hasattr(transformers, known[name][0]):
        pytest.skip(f"this transformers has no {name}")
    return tiny.lm(name)


def final_residual(lm: LM, acting: AbstractContextManager[None] | None = None) -> torch.Tensor:
    """What the last call of the final norm reads at a prompt, (positions, d)."""
    seen: list[torch.Tensor] = []
    handle = lm.view.final_norm.register_forward_hook(
        lambda module, args, out: seen.append(args[0][0].double())
    )
    with acting or nullcontext():
        tiny.logits(lm, torch.tensor(lm.encode([PROMPT])))
    handle.remove()
    return seen[-1]


@pytest.mark.parametrize("name", ["nanochat", "dory"])
def test_steering_acts_once_where_the_final_norm_is_used_before_too(name: str) -> None:
    lm = unusual(name)
    direction = dd.random_direction(lm)
    moved = final_residual(lm, dd.steer(direction, 0.5).applied(lm)) - final_residual(lm)
    expected = torch.as_tensor(-0.5 * direction.vector).expand_as(moved)
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "granite", "minicpm3"])
def test_projections_are_what_neurons_add_to_the_residual_stream(name: str) -> None:
    lm = unusual(name)
    direction = dd.random_direction(lm)
    means = dd.mean_activations(lm, [PROMPT], max_new_tokens=1)
    table = dd.neuron_table(lm, direction, means)
    gain = np.ones(lm.view.shape)
    gain[-1] = 0
    silenced = dd.Intervention("silenced", "scale", gain)
    moved = (final_residual(lm) - final_residual(lm, silenced.applied(lm)))[-1]
    along = float(moved @ torch.as_tensor(direction.unit))
    assert table.grid("projection_base")[-1].sum() == pytest.approx(along, rel=1e-4)
    # One neuron alone, of which an explanation says how far it moves the stream.
    gain[-1, 1:] = 1
    silenced = dd.Intervention("silenced", "scale", gain)
    moved = (final_residual(lm) - final_residual(lm, silenced.applied(lm)))[-1]
    assert importance(lm, silenced, means)[-1, 0] == pytest.approx(float(moved.norm()), rel=1e-3)


def test_what_directions_write_is_in_units_of_the_residual_stream() -> None:
    lm = unusual("granite")
    edit = make(lm, "rank_one").rank_one
    assert edit is not None
    edit.reads[:-1] = 0
    acting = dd.Intervention("it", "rank_one", rank_one=edit).applied(lm)
    moved = (final_residual(lm, acting) - final_residual(lm))[-1]
    read = dd.mean_activations(lm, [PROMPT], max_new_tokens=1).means[-1] @ edit.reads[-1]
    expected = torch.as_tensor(read * edit.written(lm)[-1])
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-4)
    attention = make(lm, "attention").rank_one
    assert attention is not None
    np.testing.assert_allclose(attention.written(lm), 0.5 * attention.writes)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("dory", r"In tiny-dory model\.layers\.1\.mlp\.down_proj runs 4 times"),
        ("beam", "a norm or a factor"),
        ("gemma3n", "a norm or a factor"),
    ],
)
def test_layers_that_do_not_add_what_their_mlp_writes_are_refused(name: str, sentence: str) -> None:
    lm = unusual(name)
    means = dd.mean_activations(lm, [PROMPT], max_new_tokens=2)
    with pytest.raises(DialdownError, match=sentence):
        dd.neuron_table(lm, dd.random_direction(lm), means)


@pytest.mark.parametrize("name", ["llama", "gemma3", "hyperclovax"])
@pytest.mark.parametrize("layer", range(tiny.LAYERS))
def test_a_factor_after_any_layer_is_refused(name: str, layer: int) -> None:
    lm = unusual(name)
    means = dd.mean_activations(lm, [PROMPT], max_new_tokens=2)
    direction = dd.random_direction(lm)
    assert dd.neuron_table(lm, direction, means).shape == lm.view.shape
    block = lm.model.get_submodule(lm.view.layers[layer].decoder_layer)
    block.register_forward_hook(lambda module, args, out: 0.5 * out)
    with pytest.raises(DialdownError, match=f"MLP of layer {layer} .* a norm or a factor"):
        dd.neuron_table(lm, direction, means)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_gemma_4_multiplies_the_stream_by_is_carried(dtype: torch.dtype) -> None:
    if "gemma4" not in tiny.ARCHITECTURES:
        pytest.skip("this transformers has no gemma4")
    lm = tiny.lm("gemma4", dtype=dtype)
    means, direction = dd.mean_activations(lm, [PROMPT]), dd.random_direction(lm)
    plain = dd.neuron_table(lm, direction, means)
    # As small as those of the 12B model.
    for layer, scalar in zip(lm.model.model.layers, (0.0078125, 0.5, 0.25), strict=True):
        layer.layer_scalar.fill_(scalar)
    with pytest.raises(DialdownError, match="a norm or a factor"):
        dd.neuron_table(lm, direction, means)
    scaled = dd.neuron_table(LM.of(lm.model, lm.tokenizer, name=lm.name), direction, means)
    arriving = np.array([[0.0009765625], [0.125], [0.25]])
    np.testing.assert_allclose(
        scaled.grid("projection_base"), arriving * plain.grid("projection_base")
    )
    np.testing.assert_array_equal(scaled.grid("cosine"), plain.grid("cosine"))
