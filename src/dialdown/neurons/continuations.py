"""What a model's neurons and residual stream do while it writes toxic and clean continuations, and
the direction between the two (METHOD §2, §8).

    means = continuation_means(lm, pairs)
    direction = mean_difference(lm, means)

A preference pair holds one prompt with a toxic and a clean continuation. Both are read with teacher
forcing, so the direction needs no training, no labelled texts and no word list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.pairs import Pair
from ..errors import DialdownError
from ..files import read_arrays, write_arrays
from ..models.decoding import Batch, batches, read
from ..models.hooks import neuron_hooks, residual_hook
from ..models.lm import LM
from ..models.tokens import encode_continuations
from ..progress import Progress, with_bar
from .directions import Direction


@dataclass(frozen=True, eq=False)
class ContinuationMeans:
    """Means over the positions that produce toxic and clean continuations of the same prompts
    (METHOD §5, `strict`).

    Attributes:
        toxic: (L, F) float64, mean of m_i over the dispreferred continuations.
        clean: (L, F) float64, mean of m_i over the preferred ones.
        residual_toxic: (d,) float64, mean final-layer residual stream before the final norm,
            dispreferred.
        residual_clean: (d,) float64, the same, preferred.
        positions: how many positions were averaged over, dispreferred and preferred.
        record: model, number of pairs, and `residual_norm`: mean over continuations of the norm of
            their mean residual.
    """

    toxic: NDArray[np.float64]
    clean: NDArray[np.float64]
    residual_toxic: NDArray[np.float64]
    residual_clean: NDArray[np.float64]
    positions: tuple[int, int]
    record: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write the means as one safetensors file."""
        arrays = asdict(self)
        record = {"positions": arrays.pop("positions"), "record": arrays.pop("record")}
        write_arrays(Path(path), "continuation means", arrays, record)

    @classmethod
    def load(cls, path: str | Path) -> ContinuationMeans:
        """Read what `save` wrote."""
        arrays, record = read_arrays(Path(path), "continuation means")
        toxic, clean = record["positions"]
        return cls(**arrays, positions=(toxic, clean), record=record["record"])


@with_bar
def continuation_means(
    lm: LM, pairs: Sequence[Pair], *, batch_size: int = 16, progress: Progress | None = None
) -> ContinuationMeans:
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
    prompts = [pair.prompt for pair in pairs]
    toxic, clean = _Sums(lm), _Sums(lm)
    done, total = 0, 2 * -(-len(pairs) // batch_size)
    for sums, texts in (
        (toxic, [pair.rejected for pair in pairs]),
        (clean, [pair.chosen for pair in pairs]),
    ):
        sequences = encode_continuations(lm, prompts, texts)
        # The continuation's last token is produced but produces nothing, so it is not read.
        for batch in batches(lm, [ids[:-1] for ids, _ in sequences], batch_size):
            sums.read(batch, [sequences[row][1] for row in batch.rows])
            done += 1
            if progress:
                progress("reading continuations", done, total)
        sums.check()
    norm = float(np.mean(toxic.norms + clean.norms))
    return ContinuationMeans(
        toxic.mean(toxic.neurons),
        clean.mean(clean.neurons),
        toxic.mean(toxic.residual),
        clean.mean(clean.residual),
        (toxic.positions, clean.positions),
        {**lm.describe(), "pairs": len(pairs), "residual_norm": norm},
    )


class _Sums:
    """Float64 sums over the last positions of left-padded sequences."""

    def __init__(self, lm: LM) -> None:
        self.lm = lm
        shape = (lm.view.n_layers, lm.view.n_neurons)
        self.neurons = torch.zeros(shape, dtype=torch.float64, device=lm.device)
        self.residual = torch.zeros(lm.view.d_model, dtype=torch.float64, device=lm.device)
        self.norms: list[float] = []
        self.positions = 0
        self.layers: set[int] = set()

    def read(self, batch: Batch, lengths: Sequence[int]) -> None:
        """One forward pass; of row r its last `lengths[r]` positions count."""
        counts = torch.tensor(lengths, device=batch.ids.device)[:, None]
        from_end = torch.arange(batch.ids.shape[1], 0, -1, device=batch.ids.device)
        chosen = from_end <= counts

        def add_neurons(layer: int, m: Tensor) -> None:
            total = m[chosen.to(m.device)].double().sum(0)
            self.neurons[layer] += total.to(self.neurons.device)

        def add_residual(x: Tensor) -> None:
            here = chosen.to(x.device)[..., None]
            # Filled and not multiplied: what is computed at padding need not be a number.
            totals = x.double().masked_fill(~here, 0).sum(1)
            self.residual += totals.sum(0).to(self.residual.device)
            self.norms.extend((totals / here.sum(1)).norm(dim=1).tolist())

        self.positions += sum(lengths)
        with (
            torch.inference_mode(),
            neuron_hooks(self.lm, add_neurons) as calls,
            residual_hook(self.lm, add_residual),
        ):
            read(self.lm, batch)
        self.layers |= calls.keys()

    def check(self) -> None:
        """Refuse sums that say nothing: a layer that never ran, or numbers that overflowed."""
        for index, layer in enumerate(self.lm.view.layers):
            if index not in self.layers:
                raise DialdownError(
                    f"{layer.path} of {self.lm.name} never ran, so its neurons have no activation: "
                    "pass a model that runs its MLPs."
                )
        if not (self.neurons.isfinite().all() and self.residual.isfinite().all()):
            raise DialdownError(
                f"The activations of {self.lm.name} are not finite while reading continuations: "
                "load it in float32 or bfloat16."
            )

    def mean(self, sums: Tensor) -> NDArray[np.float64]:
        """The sums over all positions read so far, divided by how many these are."""
        return np.asarray((sums / self.positions).cpu().numpy())


def mean_difference(lm: LM, means: ContinuationMeans) -> Direction:
    """The direction from clean to toxic continuations: the difference of their mean residual
    streams.

    Read where the strict probe is, before the final norm, so that `steer` and the neuron table take
    it as it is.

    Raises:
        DialdownError: the means belong to a model of another width, or are the same on both sides.
    """
    vector = means.residual_toxic - means.residual_clean
    if vector.shape != (lm.view.d_model,):
        raise DialdownError(
            f"The means have {vector.shape[0]} dimensions and the residual stream of {lm.name} "
            f"{lm.view.d_model}: collect them on this model."
        )
    if not vector.any():
        raise DialdownError(
            "The toxic and the clean continuations have the same mean residual stream, so no "
            "direction tells them apart: pass pairs that differ."
        )
    record = {
        **lm.describe(),
        **means.record,
        "protocol": "strict",
        "positions": list(means.positions),
    }
    return Direction("difference", vector, "residual", record)
