"""The linear layers of a site, one for each decoder layer: what the MLPs write the residual stream
by, or what attention does; and the modules whose outputs other methods act on.
"""

from __future__ import annotations

from typing import get_args

from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import DialdownError, nearest
from .lm import LM
from .mlp import POST_NORMS as MLP_POST_NORMS
from .projection import Projection
from .protocol import Site

# Where the output projection of attention sits inside a decoder layer, by transformers' own names.
OUTPUT_PROJECTIONS = (
    "self_attn.o_proj",
    "self_attn.out_proj",
    "self_attn.dense",
    "self_attention.dense",
    "attention.dense",
    "attn.c_proj",
    "attn.out_proj",
    "attn.attention.out_proj",
)
# Norms between attention's output and the residual stream (GLM-4, HyperCLOVA X).
POST_NORMS = ("post_self_attn_layernorm", "post_norm1")
# So is it called in Gemma-2/3, OLMo-2 and EXAONE-4, which have one after the MLP, too; in Llama
# that is the norm before the MLP.
POST_NORM, AFTER_MLP = "post_attention_layernorm", "post_feedforward_layernorm"


def projections(lm: LM, site: Site) -> tuple[Projection, ...]:
    """The linear layers of a site, first layer to last."""
    if site not in get_args(Site):
        raise DialdownError(f"Unknown site {site!r}: {nearest(site, get_args(Site))}")
    if site == "mlp":
        return lm.view.layers
    outputs = tuple(_output_projection(lm, mlp) for mlp in lm.view.layers)
    widths = {tuple(projection.columns.shape) for projection in outputs}
    if len(widths) > 1:
        raise DialdownError(
            f"The attention of {lm.name} has output projections of different shapes "
            f"{sorted(widths)}, and an edit there needs one: edit the MLPs of this model."
        )
    return outputs


def _output_projection(lm: LM, mlp: Projection) -> Projection:
    """That of the layer of an MLP, whose output is multiplied alike."""
    layer = mlp.decoder_layer
    modules = dict(lm.model.get_submodule(layer).named_modules())
    path = next((known for known in OUTPUT_PROJECTIONS if known in modules), None)
    if path is None:
        raise DialdownError(
            f"{layer} of {lm.name} has no output projection of attention that dialdown knows "
            f"(looked for {', '.join(OUTPUT_PROJECTIONS)}): edit the MLPs of this model."
        )
    known = (*POST_NORMS, POST_NORM) if AFTER_MLP in modules else POST_NORMS
    norms = [modules[norm] for norm in known if norm in modules]
    what = f"The output projection {layer}.{path} of {lm.name}"
    return Projection.of(f"{layer}.{path}", modules[path], norms, what, mlp.multiplier)


def mlp_linears(lm: LM) -> list[list[str]]:
    """Of each decoder layer, the linear layers of its MLP, where AurA is published to act."""
    of_layers = []
    for layer in lm.view.layers:
        mlp = layer.path.rpartition(".")[0]
        children = lm.model.get_submodule(mlp).named_children()
        linears = [name for name, child in children if is_linear(child)]
        of_layers.append([f"{mlp}.{name}" for name in linears])
    return of_layers


def layer_norms(lm: LM) -> list[list[str]]:
    """Of each decoder layer, the norms after attention and MLP, or else those before, where AcT is
    published to act.
    """
    of_layers = []
    for layer in lm.view.layers:
        path = layer.decoder_layer
        children = dict(lm.model.get_submodule(path).named_children())
        norms = [name for name, child in children.items() if is_norm(child)]
        after = [name for name in norms if name in (*POST_NORMS, *MLP_POST_NORMS)]
        if AFTER_MLP in children and POST_NORM in norms:
            after.append(POST_NORM)
        if not norms:
            raise DialdownError(
                f"{path} of {lm.name} has no norm with a weight, whose outputs could be mapped: "
                "use the same method at the neurons."
            )
        of_layers.append([f"{path}.{name}" for name in norms if name in (after or norms)])
    return of_layers


def is_linear(module: nn.Module | None) -> bool:
    """Whether it is a linear layer."""
    return isinstance(module, nn.Linear | Conv1D)


def is_norm(module: nn.Module | None) -> bool:
    """Whether it is a norm with a weight for each channel."""
    weight = getattr(module, "weight", None)
    return "norm" in type(module).__name__.lower() and weight is not None and weight.dim() == 1
