"""Least-squares scales: the gains that lower a projection at the least change of what the MLPs
write; nothing is trained (METHOD §4, §7).

The paper's rule fixes a strength; this asks for an effect. Over all gains that lower what the MLPs
write along W on toxic continuations by `target`, it takes the ones that change the MLPs' outputs on
neutral text least. With delta = gain - 1, layer by layer,

    minimise    sum_l E|sum_i delta_i m_i v_i|^2 = sum_l delta_l' G_l delta_l,    G_ij = E[m_i m_j] (v_i . v_j)
    subject to  sum_l q_l' delta_l = -target,                                     q_i  = toxic_i (v_i . W/|W|)

whose solution is delta_l = -target * G_l^-1 q_l / sum_k q_k' G_k^-1 q_k: one multiplier spreads the
target over the layers, each according to how cheaply it can move the projection. What a layer does
to those after it is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import DialdownError, nearest
from ..interventions.intervention import Intervention
from ..models.decoding import Progress
from ..models.lm import LM, check_axes
from ..neurons.table import NeuronTable
from ..training.attribution import Contrast, check_contrast, value_projections

BLOCK = 512  # tokens whose products are summed at once; bounds the float64 copy
Texts = Sequence[str] | Sequence[Sequence[int]]


def least_squares_scales(
    lm: LM,
    table: NeuronTable,
    contrast: Contrast,
    texts: Texts | None,
    *,
    target: float,
    ridge: float = 0.01,
    full: bool = True,
    of: Literal["toxic", "difference"] = "toxic",
    max_tokens: int = 3072,
    progress: Progress | None = None,
    name: str,
) -> Intervention:
    """The gains that lower the projection on W by `target` at the least change of the MLPs' outputs
    (see the module's head).

    Args:
        lm: the model.
        table: of this model, for the direction W and the protocol (METHOD §1: `strict` has Gemma's
            norm after the MLP in v_i).
        contrast: from `contrast_means` on this model.
        texts: neutral texts or token windows, over which E[m_i m_j] is taken; None takes E[m_i^2]
            of the contrast's clean continuations, which costs nothing and has a diagonal only.
        target: by how much the sum over layers of the mean contribution along W/|W| falls, in units
            of the residual stream; the whole contribution is `record["contribution"]`. The gains
            are linear in it until some reach 0.
        ridge: added to the diagonal of G_l, relative to its mean.
        full: the whole matrix G_l, one F x F at a time in float64; False takes its diagonal alone.
        of: `toxic` lowers the contribution on toxic continuations; `difference` what they have over
            the clean ones.
        max_tokens: tokens of `texts` that are read.
        progress: called after each text and each layer.
        name: the name its results carry.

    Returns:
        An intervention of kind `scale`; gains below 0 are set to 0. Its record has `clipped` (how
            many), and by layer
        `projection_change` (what the gains move on average along W/|W|, clipping included) and
            `output_change` (root mean
        square norm of the change of the layer's output on the texts, before clipping; diagonal
            alone where G is).

    Raises:
        DialdownError: values of another model, a target, ridge or option that cannot work, texts
            without tokens, or a direction no neuron writes along.
    """
    _check_least(target, ridge, full, of, texts)
    check_contrast(table, contrast)
    pull = (
        contrast.toxic if of == "toxic" else contrast.toxic - contrast.clean
    ) * value_projections(lm, table)
    moments = (
        iter(torch.as_tensor(contrast.moment))
        if texts is None
        else activation_moments(lm, texts, full=full, max_tokens=max_tokens, progress=progress)
    )
    solved = np.zeros(table.shape)
    costs = np.zeros(table.shape[0])
    for index, (layer, moment) in enumerate(zip(lm.view.layers, moments, strict=True)):
        vectors = layer.value_vectors(table.protocol).double().to(moment.device)
        # In place, because a matrix of a wide model takes gigabytes.
        quadratic = (vectors @ vectors.T if full else vectors.square().sum(1)).mul_(moment)
        solved[index], costs[index] = _solve(quadratic, pull[index], ridge, layer.path)
        if progress:
            progress("solving for scales", index + 1, len(costs))
    reach = float((pull * solved).sum())
    if reach == 0:
        raise DialdownError(
            f"No neuron of {lm.name} writes along the direction on these continuations, so no "
            "scale can move it: pass other pairs or another direction."
        )
    change = -target / reach * solved
    gain = 1 + change
    record = {
        "protocol": table.protocol,
        "direction": table.record["direction"],
        "base": table.record["base"],
        "target": target,
        "ridge": ridge,
        "full": full,
        "of": of,
        "contribution": float(pull.sum()),
        "projection_change": (pull * (np.maximum(gain, 0) - 1)).sum(1).tolist(),
        "output_change": (abs(target / reach) * np.sqrt(costs)).tolist(),
        "clipped": int((gain < 0).sum()),
    }
    everyone = np.ones(table.shape, dtype=bool)
    return Intervention(
        name, "scale", np.maximum(gain, 0), np.zeros(table.shape), everyone, record=record
    )


def _check_least(target: float, ridge: float, full: bool, of: str, texts: Texts | None) -> None:
    if of not in ("toxic", "difference"):
        raise DialdownError(f"Unknown `of` {of!r}: {nearest(of, ('toxic', 'difference'))}")
    if not np.isfinite(target):
        raise DialdownError(
            f"A target of {target} cannot be reached: pass a finite number, in units of the "
            "residual stream."
        )
    if not (np.isfinite(ridge) and ridge >= 0):
        raise DialdownError(
            f"A ridge of {ridge} makes the least change no minimum: pass a finite number from 0 up."
        )
    if full and texts is None:
        raise DialdownError(
            "The full matrix needs activations together, which a contrast does not keep: pass "
            "texts, or full=False."
        )


def _solve(
    quadratic: Tensor, pull: NDArray[np.float64], ridge: float, path: str
) -> tuple[NDArray[np.float64], float]:
    """x = (G + rho)^-1 q and x' G x; G is (F, F) and overwritten, or (F,) where it is diagonal."""
    q = torch.as_tensor(pull, device=quadratic.device)
    diagonal = quadratic.diagonal() if quadratic.dim() == 2 else quadratic
    rho = ridge * float(diagonal.mean())
    diagonal += rho
    if quadratic.dim() == 2:
        factor, failed = torch.linalg.cholesky_ex(quadratic)
        positive = int(failed) == 0
        x = torch.cholesky_solve(q[:, None], factor)[:, 0]
    else:
        positive = bool((quadratic > 0).all())
        x = q / quadratic
    if not positive:
        raise DialdownError(
            f"Some neurons of {path} are silent or move together on the texts, so the least change "
            "has no single answer: raise ridge, or pass more texts."
        )
    # Rounding makes the cost of changing nothing slightly negative, which no square is.
    cost = max(float(x @ q - rho * (x @ x)), 0.0)
    return x.cpu().numpy(), cost


def activation_moments(
    lm: LM,
    texts: Texts,
    *,
    full: bool = True,
    max_tokens: int = 3072,
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """E[m_i m_j] over all positions of some texts, layer by layer: (F, F) float64 each, or with
    `full=False` E[m_i^2], (F,).

    Every text is read by itself, from its own start. The activations of all layers are kept in the
    model's dtype until their layer is asked for: L x tokens x F numbers, less than the L x F x F of
    the products as long as there are fewer tokens than neurons in a layer.

    Args:
        lm: the model.
        texts: texts, each cut to the context; or token windows, BOS included where the model
            expects one.
        full: all products, or the squares alone.
        max_tokens: texts beyond so many tokens are not read.
        progress: called after each text.

    Raises:
        DialdownError: the texts have no tokens, or an activation is not a finite number.
    """
    kept = _activations(lm, _windows(lm, texts, max_tokens), progress)
    tokens = len(kept[0])
    for index in range(lm.view.n_layers):
        m = kept.pop(0)
        width = m.shape[1]
        total = torch.zeros((width, width) if full else width, dtype=torch.float64, device=m.device)
        for start in range(0, tokens, BLOCK):
            block = m[start : start + BLOCK].double()
            if full:
                total.addmm_(block.T, block)
            else:
                total += block.square().sum(0)
        if not torch.isfinite(total).all():
            raise DialdownError(
                f"The activations of {lm.name} are not finite in layer {index} on the texts: load "
                "it in float32 or bfloat16."
            )
        yield total.div_(tokens)


def _windows(lm: LM, texts: Texts, max_tokens: int) -> list[list[int]]:
    if isinstance(texts, str):
        raise DialdownError(
            "The neutral texts are one string, which would be read letter by letter: pass a list "
            "of texts."
        )
    windows: list[list[int]] = []
    left = max_tokens
    for text in texts:
        if left <= 0:
            break
        ids = (
            lm.tokenizer(text, verbose=False)["input_ids"] if isinstance(text, str) else list(text)
        )
        if window := ids[: min(left, lm.context)]:
            windows.append(window)
            left -= len(window)
    if not windows:
        raise DialdownError(
            "The neutral texts have no tokens to average over: pass some text, and max_tokens "
            "above 0."
        )
    return windows


def _activations(
    lm: LM, windows: Sequence[Sequence[int]], progress: Progress | None
) -> list[Tensor]:
    """(tokens, F) of every layer, in the order of the windows."""
    tokens = sum(map(len, windows))
    kept = [
        torch.empty(
            tokens, lm.view.n_neurons, dtype=layer.columns.dtype, device=layer.columns.device
        )
        for layer in lm.view.layers
    ]
    filled = [0] * len(kept)

    def hook(index: int, path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            check_axes(args[0], path)
            m = args[0][0]
            kept[index][filled[index] : filled[index] + len(m)] = m
            filled[index] += len(m)

        return keep

    with torch.inference_mode(), ExitStack() as stack:
        for index, layer in enumerate(lm.view.layers):
            stack.callback(layer.down.register_forward_pre_hook(hook(index, layer.path)).remove)
        for done, ids in enumerate(windows):
            lm.model(
                input_ids=torch.tensor([list(ids)], device=lm.device),
                use_cache=False,
                logits_to_keep=1,
            )
            if progress:
                progress("reading neutral texts", done + 1, len(windows))
    if silent := [
        layer.path for layer, count in zip(lm.view.layers, filled, strict=True) if count != tokens
    ]:
        raise DialdownError(
            f"{silent[0]} of {lm.name} did not run over every text, so its neurons have no "
            "moments: pass a model that runs its MLPs."
        )
    return kept
