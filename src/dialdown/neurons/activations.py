"""Mean activations of every neuron while a model decodes greedily: one pass, float64 sums (METHOD
§3).

The sums are taken inside the decoding loop, so they cost no second forward pass and no memory that
grows with the number of prompts. The two protocols average over different positions (METHOD §5):
`strict` over the positions that *produce* the new tokens, end-of-text excluded; `paper` *at* the
new tokens, the padding after an early end-of-text included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cards import card
from ..errors import DialdownError
from ..files import read_arrays, write_arrays
from ..models.decoding import Decoder, Step
from ..models.hooks import neuron_hooks
from ..models.lm import LM
from ..models.protocol import Protocol
from ..progress import Progress, with_bar


@dataclass(frozen=True, eq=False)
class NeuronMeans:
    """Mean activation of every neuron of one model over generated positions.

    Attributes:
        means: (L, F) float64, mean of m_i over prompts and positions.
        count: positions averaged over.
        protocol: which positions those are.
        record: model, dtype, prompts, tokens.
    """

    means: NDArray[np.float64]
    count: int
    protocol: Protocol
    record: dict[str, Any]

    def __repr__(self) -> str:
        layers, neurons = self.means.shape
        return (
            f"NeuronMeans({layers} layers × {neurons:,} neurons of {self.record.get('model')}, "
            f"{self.protocol}, {self.count:,} positions)"
        )

    def _repr_html_(self) -> str:
        facts = {"protocol": self.protocol, "positions": f"{self.count:,}", **self.record}
        title = "Mean activations; a bar is a layer's mean absolute one"
        return card(title, facts, bars=abs(self.means).mean(1).tolist())

    def save(self, path: str | Path) -> None:
        """Write the means as one safetensors file."""
        record = {"count": self.count, "protocol": self.protocol, "record": self.record}
        write_arrays(Path(path), "neuron means", {"means": self.means}, record)

    @classmethod
    def load(cls, path: str | Path) -> NeuronMeans:
        """Read what `save` wrote.

        Raises:
            DialdownError: the file is missing, damaged or holds no neuron means.
        """
        arrays, record = read_arrays(Path(path), "neuron means")
        return cls(arrays["means"], record["count"], record["protocol"], record["record"])


@dataclass(frozen=True)
class Decoded:
    """What one decoding pass gives.

    Attributes:
        tokens: the new token ids of each prompt.
        means: the mean activations, by protocol.
    """

    tokens: list[list[int]]
    means: dict[Protocol, NeuronMeans]


@with_bar
def mean_activations(
    lm: LM,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 20,
    max_prompt_tokens: int = 32,
    batch_size: int = 64,
    protocol: Protocol = "strict",
    progress: Progress | None = None,
) -> NeuronMeans:
    """Mean activations over `prompts`, collected while decoding `max_new_tokens` greedily (METHOD
    §3).

    Raises:
        DialdownError: empty prompts, a prompt longer than the context, or an activation that is not
            a finite number.
    """
    decoder = Decoder(
        lm,
        prompts,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        batch_size=batch_size,
        share_prefixes=False,
    )
    decoded = decode_with_means(decoder, protocols=(protocol,), progress=progress)
    return decoded.means[protocol]


def decode_with_means(
    decoder: Decoder,
    *,
    protocols: Sequence[Protocol] = ("strict", "paper"),
    progress: Progress | None = None,
) -> Decoded:
    """Decode once and average the activations under each protocol asked for.

    `paper` needs one forward pass more than there are tokens, because it averages at the last token
    too.

    Raises:
        DialdownError: an activation is not a finite number, or no real token was generated.
    """
    sums = _Sums(decoder.lm, protocols)
    with sums.listening():
        tokens = decoder.run(observe=sums.add, extra_step="paper" in protocols, progress=progress)
    record = {
        **decoder.lm.describe(),
        "prompts": len(decoder.prompts),
        "max_new_tokens": decoder.max_new_tokens,
        "torch": torch.__version__,
    }
    return Decoded(tokens, {protocol: sums.means(protocol, record) for protocol in protocols})


class _Sums:
    """Float64 sums of the last position's activations, one row per protocol."""

    def __init__(self, lm: LM, protocols: Sequence[Protocol]) -> None:
        self.lm = lm
        self.protocols = tuple(protocols)
        self.device = lm.device
        shape = (lm.view.n_layers, len(self.protocols), lm.view.n_neurons)
        self.sums = torch.zeros(shape, dtype=torch.float64, device=self.device)
        self.counts = torch.zeros(len(self.protocols), dtype=torch.float64, device=self.device)
        self.latest: dict[int, Tensor] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        with neuron_hooks(self.lm, self._keep):
            yield

    def _keep(self, index: int, m: Tensor) -> None:
        # A copy, so that the activations of a whole prompt are not kept alive by a view of its
        # last position.
        self.latest[index] = m[:, -1].to(self.device, torch.float64)

    def add(self, step: Step) -> None:
        rows = [
            step.producing if protocol == "strict" else step.generated
            for protocol in self.protocols
        ]
        weights = torch.stack(rows).to(self.device, torch.float64)
        self.counts += weights.sum(-1)
        for index, activations in self.latest.items():
            self.sums[index].addmm_(weights, activations)

    def means(self, protocol: Protocol, record: dict[str, Any]) -> NeuronMeans:
        row = self.protocols.index(protocol)
        count = int(self.counts[row])
        if len(self.latest) < self.lm.view.n_layers or count == 0:
            raise DialdownError(
                f"No activation of {self.lm.name} was averaged while decoding: every prompt ended "
                "at once, or the model "
                "skips its MLPs; pass other prompts."
            )
        sums = self.sums[:, row]
        broken = torch.nonzero(~torch.isfinite(sums).all(-1))
        if len(broken):
            raise DialdownError(
                f"The activations of {self.lm.name} are not finite in layer {int(broken[0])} while "
                "decoding: load it in float32 or bfloat16, or check its weights."
            )
        return NeuronMeans((sums / count).cpu().numpy(), count, protocol, record)
