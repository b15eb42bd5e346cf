"""Which architectures have a bias on the MLP's down projection, and how one gets it: what `shift`
and `set` fold into (METHOD §7).
"""

from __future__ import annotations

import torch
from torch import nn

from ..errors import DialdownError
from .lm import LM


def holds_bias(lm: LM) -> bool:
    """Whether `shift` and `set` fold: the down projection has a bias, or an option for one."""
    if any(layer.post_norm is not None for layer in lm.view.layers):
        return False
    has = all(layer.linear.bias is not None for layer in lm.view.layers)
    return has or hasattr(lm.model.config.get_text_config(), "mlp_bias")


def ensure_bias(lm: LM, what: str) -> None:
    """Give the down projections a bias, by the `mlp_bias` of the config where they have none."""
    if not holds_bias(lm):
        held = (
            "steering"
            if any(layer.post_norm is not None for layer in lm.view.layers)
            else "a shift or steering"
        )
        raise DialdownError(
            f"{what} needs a bias on the MLP's down projection and {type(lm.model).__name__} has "
            "none to fold it into: use kind='scale', which needs no bias, or a control vector "
            f"while generating, which can hold {held}."
        )
    if all(layer.linear.bias is not None for layer in lm.view.layers):
        return
    lm.model.config.get_text_config().mlp_bias = True
    for layer in lm.view.layers:
        parent = lm.model.get_submodule(layer.path.rpartition(".")[0])
        # A checkpoint with mlp_bias has a bias on all three projections, so the untouched two get
        # zeros.
        for linear in parent.children():
            if isinstance(linear, nn.Linear) and linear.bias is None:
                linear.bias = nn.Parameter(torch.zeros(linear.out_features).to(linear.weight))
