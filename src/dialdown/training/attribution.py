"""What tells toxic from clean continuations: mean activations and residual streams (METHOD §2, §8).

A preference pair holds one prompt with a toxic and a clean continuation. Reading both with teacher
forcing gives, without any training, the mean activation of every neuron while the model writes the
one or the other, and the difference of the two mean residual streams: a direction that needs
neither labelled texts nor a word list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import DialdownError
from ..files import read_arrays, write_arrays
from ..models.decoding import Batch, batches
from ..models.lm import LM, check_axes
from ..neurons.directions import Direction
from ..progress import Progress
from .examples import continuation_ids
from .make_pairs import Pair


@dataclass(frozen=True, eq=False)
class Contrast:
    """Mean activations over the positions that produce toxic and clean continuations of the same
    prompts (METHOD §5, `strict`).

    Attributes:
        toxic: (L, F) float64, mean of m_i over the dispreferred continuations.
        clean: (L, F) float64, mean of m_i over the preferred ones.
        residual_toxic: (d,) float64, mean final-layer residual stream before the final norm,
            dispreferred.
        residual_clean: (d,) float64, the same, preferred.
        moment: (L, F) float64, mean of m_i**2 over the preferred continuations.
        positions: how many positions were averaged over, dispreferred and preferred.
        record: model, number of pairs, and `residual_norm`: mean over continuations of the norm of
            their mean residual.
    """

    toxic: NDArray[np.float64]
    clean: NDArray[np.float64]
    residual_toxic: NDArray[np.float64]
    residual_clean: NDArray[np.float64]
    moment: NDArray[np.float64]
    positions: tuple[int, int]
    record: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write the contrast as one safetensors file."""
        arrays = {
            name: getattr(self, name)
            for name in ("toxic", "clean", "residual_toxic", "residual_clean", "moment")
        }
        write_arrays(
            Path(path), "contrast", arrays, {"positions": self.positions, "record": self.record}
        )

    @classmethod
    def load(cls, path: str | Path) -> Contrast:
        """Read what `save` wrote.

        Raises:
            DialdownError: the file is missing, damaged or holds no contrast.
        """
        arrays, record = read_arrays(Path(path), "contrast")
        toxic, clean = record["positions"]
        return cls(**arrays, positions=(toxic, clean), record=record["record"])


def contrast_means(
    lm: LM, pairs: Sequence[Pair], *, batch_size: int = 16, progress: Progress | None = None
) -> Contrast:
    """Read prompt and continuation of every pair, and average over the positions that produce the
    continuation's tokens.

    Args:
        lm: the model.
        pairs: preference pairs; `rejected` is the toxic side.
        batch_size: continuations per forward pass.
        progress: called after each batch.

    Raises:
        DialdownError: no pairs, a pair without a prompt or a continuation, one longer than the
            context, or an activation that is not a finite number.
    """
    sides = [
        encode_continuations(lm, pairs, texts)
        for texts in ([pair.rejected for pair in pairs], [pair.chosen for pair in pairs])
    ]
    per_side = -(-len(pairs) // batch_size)
    sums = []
    for number, sequences in enumerate(sides):
        one = _Sums(lm)
        # The continuation's last token is produced but produces nothing, so it is not read.
        grouped = batches(lm, [ids[:-1] for ids, _ in sequences], batch_size)
        for done, batch in enumerate(grouped):
            one.read(batch, [sequences[row][1] for row in batch.rows])
            if progress:
                progress("contrasting continuations", number * per_side + done + 1, 2 * per_side)
        one.check()
        sums.append(one)
    toxic, clean = sums
    norm = float(np.mean(toxic.norms + clean.norms))
    return Contrast(
        _mean(toxic.first, toxic.positions),
        _mean(clean.first, clean.positions),
        _mean(toxic.residual, toxic.positions),
        _mean(clean.residual, clean.positions),
        _mean(clean.second, clean.positions),
        (toxic.positions, clean.positions),
        {**lm.describe(), "pairs": len(pairs), "residual_norm": norm},
    )


def encode_continuations(
    lm: LM, pairs: Sequence[Pair], texts: Sequence[str]
) -> list[tuple[list[int], int]]:
    """The ids of each pair's prompt and one continuation, and how many of them are the
    continuation's.

    Raises:
        DialdownError: no pairs, a pair without a prompt or a continuation, or one longer than the
            context.
    """
    if not pairs:
        raise DialdownError(
            "There are no pairs to read: pass at least one with a prompt and two continuations."
        )
    encoded = []
    for number, (pair, text) in enumerate(zip(pairs, texts, strict=True)):
        start = lm.encode([pair.prompt])[0]
        continuation = continuation_ids(lm.tokenizer, pair.prompt, text)
        if not start or not continuation:
            raise DialdownError(
                f"Pair {number} has an empty prompt or continuation, so nothing is produced: leave "
                "it out."
            )
        ids = [*start, *continuation]
        # The last token need not be read, so that a continuation may end where the context does.
        if len(ids) > lm.context + 1:
            raise DialdownError(
                f"Pair {number} has {len(ids)} tokens, which exceed the context of {lm.name} "
                f"({lm.context}): shorten its prompt."
            )
        encoded.append((ids, len(continuation)))
    return encoded


class _Sums:
    """Float64 sums over the last positions of left-padded sequences."""

    def __init__(self, lm: LM) -> None:
        self.lm = lm
        shape = (lm.view.n_layers, lm.view.n_neurons)
        self.first = torch.zeros(shape, dtype=torch.float64, device=lm.device)
        self.second = torch.zeros_like(self.first)
        self.residual = torch.zeros(lm.view.d_model, dtype=torch.float64, device=lm.device)
        self.norms: list[float] = []
        self.positions = 0
        self.calls = [0] * lm.view.n_layers
        self.chosen = torch.zeros((0, 0), dtype=torch.bool)

    def read(self, batch: Batch, lengths: Sequence[int]) -> None:
        """One forward pass; of row r its last `lengths[r]` positions count."""
        counts = torch.tensor(lengths, device=batch.ids.device)[:, None]
        from_end = torch.arange(batch.ids.shape[1], 0, -1, device=batch.ids.device)
        self.chosen = from_end <= counts
        self.positions += sum(lengths)
        with torch.inference_mode(), self._listening():
            self.lm.model(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                position_ids=batch.positions,
                use_cache=False,
                logits_to_keep=1,
            )

    def check(self) -> None:
        """Refuse sums that say nothing: a layer that never ran, or numbers that overflowed."""
        layers = self.lm.view.layers
        if silent := [
            layer.path for layer, calls in zip(layers, self.calls, strict=True) if calls == 0
        ]:
            raise DialdownError(
                f"{silent[0]} of {self.lm.name} never ran, so its neurons have no activation: pass "
                "a model that runs its MLPs."
            )
        finite = torch.isfinite(self.second).all(-1)
        if not finite.all() or not torch.isfinite(self.residual).all():
            raise DialdownError(
                f"The activations of {self.lm.name} are not finite while reading continuations: "
                "load it in float32 or bfloat16."
            )

    @contextmanager
    def _listening(self) -> Iterator[None]:
        with ExitStack() as stack:
            for index, layer in enumerate(self.lm.view.layers):
                stack.callback(
                    layer.down.register_forward_pre_hook(self._hook(index, layer.path)).remove
                )
            stack.callback(
                self.lm.view.final_norm.register_forward_pre_hook(self._add_residual).remove
            )
            yield

    def _hook(self, index: int, path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            check_axes(args[0], path)
            m = args[0][self.chosen.to(args[0].device)].double()
            self.first[index] += m.sum(0).to(self.first.device)
            self.second[index] += m.square().sum(0).to(self.second.device)
            self.calls[index] += 1

        return add

    def _add_residual(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        chosen = self.chosen.to(args[0].device)[..., None]
        # Filled and not multiplied: what an architecture computes at padding need not be a number.
        totals = args[0].double().masked_fill(~chosen, 0).sum(1)
        self.residual += totals.sum(0).to(self.residual.device)
        self.norms += (totals / chosen.sum(1)).norm(dim=1).tolist()


def _mean(sums: Tensor, count: int) -> NDArray[np.float64]:
    return np.asarray((sums / count).cpu().numpy())


def mean_difference(lm: LM, contrast: Contrast) -> Direction:
    """The direction from clean to toxic continuations: the difference of their mean residual
    streams (METHOD §2's third way).

    Read where the strict probe is, before the final norm, so that `steer` and the neuron table take
    it as it is.

    Raises:
        DialdownError: the contrast belongs to a model of another width, or its two sides have the
            same mean.
    """
    vector = contrast.residual_toxic - contrast.residual_clean
    if vector.shape != (lm.view.d_model,):
        raise DialdownError(
            f"The contrast has {vector.shape[0]} dimensions and the residual stream of {lm.name} "
            f"{lm.view.d_model}: collect it on this model."
        )
    if not vector.any():
        raise DialdownError(
            "The toxic and the clean continuations have the same mean residual stream, so no "
            "direction tells them apart: pass pairs that differ."
        )
    record = {
        **lm.describe(),
        **contrast.record,
        "protocol": "strict",
        "positions": list(contrast.positions),
    }
    return Direction("difference", vector, "residual", record)
