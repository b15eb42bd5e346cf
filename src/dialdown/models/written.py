"""Whether what an MLP writes reaches the residual stream as METHOD §1 has it."""

from __future__ import annotations

import torch

from ..errors import DialdownError
from .hooks import residual_hook
from .lm import LM


def check_written(lm: LM) -> None:
    """Refuse a model in which what the last MLP writes does not reach the final residual stream as
    METHOD §1 has it, times the view's one number: another norm or factor is in between. Where the
    view knows of a norm there, nothing can be told so.
    """
    last = lm.view.layers[-1]
    if last.post_norm is not None or last.columns.is_meta:
        return
    ids = torch.arange(8, device=lm.device)[None] % len(lm.view.unembedding.weight)
    seen: list[torch.Tensor] = []

    def final_residual() -> torch.Tensor:
        with torch.inference_mode(), residual_hook(lm, lambda x: seen.append(x[0, -1].double())):
            lm.model(input_ids=ids, use_cache=False)
        return seen[-1]

    before = final_residual()
    added = torch.linspace(-1, 1, len(before), device=before.device).double()
    added *= before.norm() / added.norm()
    with last.linear.register_forward_hook(lambda *call: call[-1] + added.to(call[-1])):
        moved = final_residual() - before
    if (moved - lm.view.residual_multiplier * added).norm() > 0.1 * moved.norm():
        raise DialdownError(
            f"In {lm.name} what the last MLP writes reaches the residual stream through a norm or "
            "a factor that dialdown does not know, so value vectors, steering and shifts would not "
            "be what they seem: this architecture is not supported."
        )
