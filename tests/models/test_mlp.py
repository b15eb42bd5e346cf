"""Where the neurons are: activations, value vectors and equation 1 against explicit formulas
(METHOD §1).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

import dialdown as dd
from dialdown import DialdownError
from dialdown.models import LM, MLPView
from helpers import tiny

UP_PROJECTIONS = ("c_fc", "fc_in", "fc1", "dense_h_to_4h", "up_proj")


ACTIVATIONS = ("act", "act_fn", "activation_fn", "gelu_impl", "activation")


def explicit_activation(mlp: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """METHOD §1 from the modules' names: act(W_in x), or act(W_gate x) * (W_up x)."""
    up = next(getattr(mlp, name) for name in UP_PROJECTIONS if hasattr(mlp, name))
    act = next(getattr(mlp, name) for name in ACTIVATIONS if hasattr(mlp, name))
    if hasattr(mlp, "gate_proj"):
        return act(mlp.gate_proj(x)) * up(x)
    return act(up(x))


def capture(
    lm: LM, modules: dict[str, nn.Module], ids: torch.Tensor
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Input and output of modules during one forward pass (copies: Falcon adds attention to the
    MLP's output in place).
    """
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    handles = [
        module.register_forward_hook(
            lambda m, args, out, name=name: seen.update({name: (args[0].clone(), out.clone())})
        )
        for name, module in modules.items()
    ]
    tiny.logits(lm, ids)
    for handle in handles:
        handle.remove()
    return seen


def test_down_projection_input_is_the_activation_and_its_columns_are_the_value_vectors(
    lm: LM,
) -> None:
    ids = tiny.random_ids(2, 12)
    for layer in lm.view.layers:
        mlp = lm.model.get_submodule(layer.path.rpartition(".")[0])
        up = next(getattr(mlp, name) for name in UP_PROJECTIONS if hasattr(mlp, name))
        seen = capture(lm, {"up": up, "down": layer.linear}, ids)
        x, (m, written) = seen["up"][0], seen["down"]
        assert m.shape == (2, 12, lm.view.n_neurons)
        with torch.no_grad():
            torch.testing.assert_close(m, explicit_activation(mlp, x), atol=1e-5, rtol=1e-5)

        # Equation 1, one neuron at a time.
        total = torch.zeros(2, 12, lm.view.d_model, dtype=torch.float64)
        for i, v in enumerate(layer.value_vectors("paper")):
            total += m[..., i, None].double() * v.double()
        if layer.linear.bias is not None:
            total += layer.linear.bias.detach().double()
        torch.testing.assert_close(written.double(), total, atol=1e-4, rtol=1e-4)


def test_the_down_projection_writes_the_whole_mlp_output(named: LM) -> None:
    ids = tiny.random_ids(2, 12)
    for layer in named.view.layers:
        mlp = named.model.get_submodule(layer.path.rpartition(".")[0])
        seen = capture(named, {"mlp": mlp, "down": layer.linear}, ids)
        assert torch.equal(seen["mlp"][1], seen["down"][1])


def test_shapes_and_order(lm: LM) -> None:
    assert (lm.view.n_layers, lm.view.d_model) == (tiny.LAYERS, tiny.WIDTH)
    assert [
        int(next(p for p in layer.path.split(".") if p.isdigit())) for layer in lm.view.layers
    ] == [*range(tiny.LAYERS)]
    for layer in lm.view.layers:
        assert layer.columns.shape == (lm.view.d_model, lm.view.n_neurons)
        assert layer.columns.data_ptr() == layer.linear.weight.data_ptr()
        assert lm.model.get_submodule(layer.path) is layer.linear


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo2", "exaone4"])
def test_a_norm_after_the_mlp_is_part_of_the_value_vector_under_strict(name: str) -> None:
    lm = tiny.lm(name)
    for layer in lm.view.layers:
        assert layer.post_norm is not None
        weight = layer.post_norm.weight.detach()
        effective = 1 + weight if name.startswith("gemma") else weight
        columns = layer.linear.weight.detach().T
        torch.testing.assert_close(
            layer.value_vectors("strict"), columns * effective, atol=1e-4, rtol=1e-4
        )
        assert torch.equal(layer.value_vectors("paper"), columns)
        assert not torch.allclose(layer.value_vectors("strict"), columns)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "gemma", "qwen2", "qwen3"])
def test_the_norm_before_the_mlp_is_no_part_of_it(name: str) -> None:
    for layer in tiny.lm(name).view.layers:
        assert layer.post_norm is None
        assert torch.equal(layer.value_vectors("strict"), layer.value_vectors("paper"))


def test_half_precision_weights_give_float32_value_vectors() -> None:
    full = tiny.lm("gemma2")
    half = tiny.lm("gemma2", dtype=torch.bfloat16)
    vectors = half.view.layers[0].value_vectors("strict")
    assert vectors.dtype == torch.float32
    # bfloat16 keeps 8 bits: weight and gain are each off by 2^-9 at most.
    torch.testing.assert_close(
        vectors, full.view.layers[0].value_vectors("strict"), rtol=2**-7, atol=1e-6
    )


REFUSALS = {
    "mixtral": "experts.*dense MLP",
    "qwen2_moe": "experts.*dense MLP",
    "phi3": "fused MLP.*down='mlp.down_proj'",
    "opt": "no MLP that dialdown knows",
}


@pytest.mark.parametrize("name", [*tiny.REFUSED])
def test_what_cannot_be_taken_apart_is_refused(name: str) -> None:
    with pytest.raises(DialdownError, match=REFUSALS[name]):
        tiny.lm(name)


def test_activations_without_a_position_axis_are_refused() -> None:
    """OPT runs its MLP on (batch x positions, neurons); taking the last position there would take
    the last neuron.
    """
    lm = LM.of(tiny.model("opt"), tiny.tokenizer(), down="fc2")
    with pytest.raises(
        DialdownError,
        match=r"model.decoder.layers.0.fc2 gets its activations with shape \(\d, 24\)",
    ):
        dd.mean_activations(lm, ["abcd"], batch_size=1)
    everything = np.full((tiny.LAYERS, tiny.NEURONS), 2.0)
    doubled = dd.Intervention("x", "scale", everything, 0 * everything, everything > 0)
    with (
        pytest.raises(DialdownError, match="positions cannot be told apart"),
        doubled.applied(lm, positions="last"),
    ):
        tiny.logits(lm, tiny.random_ids(2, 2))


def test_a_fused_mlp_is_taken_when_its_down_projection_is_named() -> None:
    lm = LM.of(tiny.model("phi3"), tiny.tokenizer(), down="mlp.down_proj")
    mlp = lm.model.model.layers[1].mlp
    seen = capture(lm, {"fused": mlp.gate_up_proj, "down": mlp.down_proj}, tiny.random_ids(1, 5))
    gate, up = seen["fused"][1].chunk(2, dim=-1)
    torch.testing.assert_close(seen["down"][0], torch.nn.functional.silu(gate) * up)
    assert lm.view.layers[1].path == "model.layers.1.mlp.down_proj"


def test_an_unknown_down_path_says_what_was_looked_for() -> None:
    with pytest.raises(DialdownError, match=r"looked for mlp\.nowhere in LlamaDecoderLayer"):
        MLPView.find(tiny.model("llama"), down="mlp.nowhere")


def test_a_path_to_something_else_than_a_matrix_is_refused() -> None:
    with pytest.raises(DialdownError, match="not a plain matrix"):
        MLPView.find(tiny.model("llama"), down="mlp.act_fn")


def test_an_encoder_decoder_is_refused() -> None:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 10}
    with pytest.raises(DialdownError, match="decoder-only causal LM"):
        MLPView.find(T5ForConditionalGeneration(T5Config(**sizes)))


def test_layers_of_different_widths_are_refused() -> None:
    model = tiny.model("llama")
    model.model.layers[1].mlp.down_proj = nn.Linear(tiny.NEURONS + 1, tiny.WIDTH)
    with pytest.raises(DialdownError, match="different widths"):
        MLPView.find(model)


def test_a_model_without_output_embeddings_is_refused() -> None:
    with pytest.raises(DialdownError, match="no unembedding"):
        MLPView.find(tiny.model("llama").model)


def test_weights_that_are_nowhere_are_refused() -> None:
    with pytest.raises(DialdownError, match="not in memory as plain tensors"):
        MLPView.find(tiny.model("llama").to("meta"))
    assert MLPView.find(tiny.model("llama").to("meta"), skeleton=True).n_layers == tiny.LAYERS


def test_weights_of_a_class_of_their_own_are_refused() -> None:
    class Elsewhere(torch.Tensor):
        pass

    model = tiny.model("llama")
    down = model.model.layers[1].mlp.down_proj
    down.weight = nn.Parameter(down.weight.data.as_subclass(Elsewhere))
    with pytest.raises(DialdownError, match="plain tensors"):
        MLPView.find(model)


def test_a_norm_or_factor_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the last MLP and the residual stream, where value vectors would not be what they
    seem.
    """
    unknown = tiny.lm("llama")
    layer = unknown.model.get_submodule(unknown.view.layers[-1].decoder_layer)
    known = layer.mlp.forward
    monkeypatch.setattr(layer.mlp, "forward", lambda x: 0.5 * known(x))
    direction = dd.random_direction(unknown)
    with pytest.raises(DialdownError, match="a norm or a factor"):
        dd.steer(direction, 1.0).fold(unknown)
    means = dd.mean_activations(unknown, ["the cat"], max_new_tokens=2)
    with pytest.raises(DialdownError, match="a norm or a factor"):
        dd.neuron_table(unknown, direction, means)
