"""Where the neurons of a causal LM are: the down projection of each layer, and what comes after the
last one (METHOD §1).

Everything the project does to a neuron happens at that module: its input is the activation m, its
input columns are the value vectors v_i, and its forward is equation 1 of the paper,

    MLP(x) = sum_i m_i(x) * v_i + b

Nothing is re-implemented.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import DialdownError
from .projection import Projection

# Where the down projection sits inside a decoder layer: transformers' own names, one per family of
# MLP classes.
DOWN_PROJECTIONS = ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc2", "mlp.fc_out")
# Norms that Gemma-2/3, OLMo-2, GLM-4 and HyperCLOVA X put between the MLP's output and the residual
# stream.
POST_NORMS = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_norm2")
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm")
EXPERTS = ("experts", "block_sparse_moe", "shared_expert", "router")
FUSED = ("gate_up_proj", "dense_h_to_4h_gate", "fc1_gate")


def check_axes(activations: Tensor, path: str) -> None:
    """Refuse activations without batch and position axes (OPT flattens them)."""
    if activations.dim() != 3:
        raise DialdownError(
            f"{path} gets its activations with shape {tuple(activations.shape)}, not (batch, "
            "positions, channels), so their positions cannot be told apart: "
            "this architecture is not supported."
        )


@dataclass(frozen=True)
class MLPView:
    """The down projections of a model, first layer to last, and what comes after them.

    Attributes:
        layers: one `Projection` per decoder layer.
        final_norm: the norm before the unembedding; its *input* is the final-layer residual stream
            x^L.
        unembedding: the output embedding, weight (V, d).
    """

    layers: tuple[Projection, ...]
    final_norm: nn.Module
    unembedding: nn.Linear

    @property
    def residual_multiplier(self) -> float:
        """What the last layer's output is multiplied by before it is added to the residual
        stream.
        """
        return self.layers[-1].multiplier

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def n_neurons(self) -> int:
        """Neurons per layer, F."""
        return int(self.layers[0].columns.shape[1])

    @property
    def down(self) -> str:
        """The dotted path from a decoder layer to its down projection, as `find` takes it."""
        first = self.layers[0]
        return first.path.removeprefix(f"{first.decoder_layer}.")

    @property
    def d_model(self) -> int:
        """Residual width, d."""
        return int(self.layers[0].columns.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, neurons)."""
        return self.n_layers, self.n_neurons

    @classmethod
    def find(cls, model: nn.Module, *, down: str | None = None, skeleton: bool = False) -> MLPView:
        """Find the down projections of `model` by the names transformers gives them.

        Args:
            model: a transformers causal LM.
            down: the dotted path from a decoder layer to its down projection, for a model whose MLP
                is not recognised.
            skeleton: take a model without weights (on the meta device), of which only the
                architecture is asked.

        Raises:
            DialdownError: no decoder layers, an expert or fused MLP, a down projection that is not
                a plain matrix, or weights that do not lie in the model itself.
        """
        name = type(model).__name__
        if not skeleton:
            check_in_place(model)
        decoder, stack = _decoder_stack(model)
        layers = tuple(
            _mlp_layer(name, model, layer, down, multiplier)
            for layer, multiplier in zip(stack, _multipliers(model, stack), strict=True)
        )
        widths = {tuple(layer.columns.shape) for layer in layers}
        if len(widths) > 1:
            raise DialdownError(
                f"{name} has MLPs of different widths {sorted(widths)}: one neuron table needs one "
                "width, so this model is not supported."
            )
        final_norm = next(
            (getattr(decoder, norm) for norm in FINAL_NORMS if hasattr(decoder, norm)), None
        )
        unembedding = getattr(model, "get_output_embeddings", lambda: None)()
        if final_norm is None or unembedding is None:
            missing = "final norm" if final_norm is None else "unembedding"
            raise DialdownError(
                f"{name} has no {missing} that dialdown recognises: pass a decoder-only causal LM."
            )
        return cls(layers, final_norm, unembedding)


def check_in_place(model: nn.Module) -> None:
    """Refuse a model whose weights lie elsewhere than in its parameters."""
    dispatched = any(hasattr(module, "_hf_hook") for module in model.modules())
    elsewhere = [
        key
        for key, weight in model.named_parameters()
        if weight.is_meta or type(weight.data) is not Tensor
    ]
    if dispatched or elsewhere:
        where = (
            "dispatched by accelerate (device_map)"
            if dispatched
            else f"not in memory as plain tensors ({elsewhere[0]})"
        )
        raise DialdownError(
            f"The weights of {type(model).__name__} are {where}, so reading or editing them here "
            "would not be what the model computes with: "
            "load it whole on one device, with load(...) or from_pretrained without device_map."
        )


def _decoder_stack(model: nn.Module) -> tuple[nn.Module, Sequence[nn.Module]]:
    decoder: Any = getattr(model, getattr(model, "base_model_prefix", ""), model)
    for wrapper in ("decoder", "language_model", "text_model"):
        decoder = getattr(decoder, wrapper, decoder)
    for name in ("layers", "h", "blocks"):
        stack = getattr(decoder, name, None)
        if isinstance(stack, nn.ModuleList) and len(stack):
            return decoder, list(stack)
    raise DialdownError(
        f"{type(model).__name__} has no list of decoder layers (looked for layers, h, blocks): "
        "pass a decoder-only causal LM."
    )


def _multipliers(model: Any, stack: Sequence[nn.Module]) -> list[float]:
    """What the output of each layer's MLP is multiplied by until it is part of the final residual
    stream.
    """
    multiplier = getattr(model.config.get_text_config(), "residual_multiplier", 1.0)
    multiplier = float(getattr(stack[0], "residual_scale", multiplier))
    multipliers = []
    for layer in reversed(stack):
        # Gemma 4 multiplies the stream itself after each layer.
        scalar = getattr(layer, "layer_scalar", None)
        if isinstance(scalar, Tensor) and scalar.numel() == 1 and not scalar.is_meta:
            multiplier *= float(scalar)
        multipliers.append(multiplier)
    return multipliers[::-1]


def _mlp_layer(
    name: str, model: nn.Module, layer: nn.Module, down: str | None, multiplier: float
) -> Projection:
    modules = dict(layer.named_modules())
    if down is None:
        parts = {part for path in modules for part in path.split(".")}
        if unsupported := parts.intersection(EXPERTS):
            raise DialdownError(
                f"{name} routes tokens to experts ({min(unsupported)}), so a neuron has no single "
                "mean activation: pass a model with a dense MLP."
            )
        if unsupported := parts.intersection(FUSED):
            raise DialdownError(
                f"{name} has a fused MLP ({min(unsupported)}), which dialdown does not take apart "
                "by itself: name its down projection with load(..., down='mlp.down_proj') if its "
                "input is the activation of METHOD §1."
            )
    path = down or next((known for known in DOWN_PROJECTIONS if known in modules), None)
    if path is None or path not in modules:
        raise DialdownError(
            f"{name} has no MLP that dialdown knows (looked for "
            f"{down or ', '.join(DOWN_PROJECTIONS)} in {type(layer).__name__}): "
            "pass load(..., down='path.in.layer') with the path of the down projection."
        )
    paths = {id(m): n for n, m in model.named_modules()}
    norms = [modules[norm] for norm in POST_NORMS if norm in modules]
    what = f"The down projection {path} of {name}"
    return Projection.of(paths[id(modules[path])], modules[path], norms, what, multiplier)
