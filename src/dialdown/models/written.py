"""Whether what the MLPs write reaches the residual stream as METHOD §1 has it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DialdownError
from .fits import check_finite
from .hooks import residual_hook
from .lm import LM

TOLERANCE = 0.1  # of what arrives, which 16 bits round
INSTEAD = "pass a model of an architecture whose layers add to the residual stream once"


def check_written(lm: LM) -> None:
    """Refuse a model in which what the MLPs write does not reach the final residual stream as
    METHOD §1 has it, times the number that is known of each: another norm or factor is in between,
    or an MLP runs more than once.

    Two short forward passes. In the second every module with weights gives what it gave in the
    first, so that what is added after each MLP can arrive by the residual stream alone.
    """
    if lm.view.layers[-1].columns.is_meta:
        return
    kept: defaultdict[nn.Module, list[Tensor]] = defaultdict(list)

    def keep(module: nn.Module, args: Any, out: Any) -> None:
        # A copy: Falcon adds to what its MLP wrote in place.
        kept[module].append(out.clone())

    finals = _final_residuals(lm, keep)
    _check_calls(lm, [len(kept[layer.linear]) for layer in lm.view.layers], len(finals))
    before = finals[0]
    check_finite(lm, before, "final-layer residuals")
    sizes = [float(before.norm()) / (layer.multiplier or 1) for layer in lm.view.layers]
    # With the factors of all layers of Gemma 4 behind it, what still shows at the end may be more
    # than 16 bits hold; and more directions than dimensions cannot be told apart.
    most = torch.finfo(lm.model.dtype).max / 100
    checked = [layer for layer, size in enumerate(sizes) if size < most][-lm.view.d_model :]
    noise = torch.randn(len(before), len(checked), generator=torch.Generator().manual_seed(0))
    directions = torch.linalg.qr(noise.double()).Q.T.to(before)
    ends = [layer.post_norm or layer.linear for layer in lm.view.layers]
    added = {
        ends[layer]: sizes[layer] * direction
        for layer, direction in zip(checked, directions, strict=True)
    }

    def again(module: nn.Module, args: Any, out: Any) -> Tensor:
        held = kept[module].pop(0)
        return held + added[module].to(held) if module in added else held

    moved = (_final_residuals(lm, again)[0] - before) / before.norm()
    unlike = (directions @ moved - 1).abs() > TOLERANCE
    if unlike.any() or (moved - directions.sum(0)).norm() > TOLERANCE * moved.norm():
        layer = checked[int(unlike.nonzero()[-1])] if unlike.any() else checked[0]
        raise DialdownError(
            f"In {lm.name} what the MLP of layer {layer} writes reaches the final residual stream "
            "through a norm or a factor that dialdown does not know, so value vectors, steering "
            f"and shifts would not be what they seem: {INSTEAD}."
        )


def _final_residuals(lm: LM, hook: Callable[[nn.Module, Any, Any], Tensor | None]) -> list[Tensor]:
    """The last position's, (d,) float64, each time a few ids have gone through the model, with a
    hook on the outputs of all modules that have weights and of the norms after MLPs.
    """
    ids = torch.arange(8, device=lm.device)[None] % len(lm.view.unembedding.weight)
    hooked = {module: None for module in lm.model.modules() if _has_weights(module)}
    hooked |= {layer.post_norm: None for layer in lm.view.layers if layer.post_norm is not None}
    finals: list[Tensor] = []
    with ExitStack() as stack:
        for module in hooked:
            stack.enter_context(module.register_forward_hook(hook))
        stack.enter_context(residual_hook(lm, lambda x: finals.append(x[0, -1].double())))
        with torch.inference_mode():
            lm.model(input_ids=ids, use_cache=False)
    return finals


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False)) and not any(module.children())


def _check_calls(lm: LM, mlps: list[int], finals: int) -> None:
    """Refuse a model that runs an MLP other than once in a forward pass, or after the last one its
    final norm.
    """
    paths = [layer.path for layer in lm.view.layers]
    for what, calls in zip((*paths, "the final norm"), (*mlps, finals), strict=True):
        if calls != 1:
            raise DialdownError(
                f"In {lm.name} {what} runs {calls} times in a forward pass, so no one activation "
                f"and value vector is what a neuron adds to the residual stream: {INSTEAD}."
            )
