"""Mean activations of every neuron while a model decodes greedily: one pass, float64 sums (METHOD
§3).

The sums are taken inside the decoding loop, so they cost no second forward pass and no memory that
grows with the number of prompts. The two protocols average over different positions (METHOD §5):
`strict` over the positions that *produce* the new tokens, end-of-text excluded; `paper` *at* the
new tokens, the padding after an early end-of-text included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cards import card
from ..errors import DialdownError
from ..files import fingerprint, read_arrays, write_arrays
from ..models.decoding import Decoder, Step, batches, read
from ..models.fits import check_finite
from ..models.hooks import neuron_hooks
from ..models.lm import LM
from ..models.memory import AUTO, BatchSize
from ..models.protocol import Protocol, check_protocols

# Which of the record says where means were taken, and what to call it where it differs.
PLACES = {"prompt_ids": "other prompts", "max_new_tokens": "other numbers of new tokens"}


@dataclass(frozen=True, eq=False)
class NeuronMeans:
    """Mean activation of every neuron of one model over generated positions.

    Attributes:
        means: (L, F) float64, mean of m_i over prompts and positions.
        count: positions averaged over.
        protocol: which positions those are.
        record: model, dtype, prompts and a hash of their ids, tokens.
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

    def check_comparable(self, after: NeuronMeans) -> None:
        """Refuse to be compared with means of another protocol, of other prompts or of another
        number of new tokens (DialdownError).
        """
        if self.protocol != after.protocol:
            raise DialdownError(
                f"The means are of two protocols, {self.protocol} and {after.protocol}, and can "
                "only be compared under one: collect both with dd.mean_activations."
            )
        for key, differ in PLACES.items():
            # Files of earlier versions have no hash.
            base, tuned = self.record.get(key), after.record.get(key)
            if None not in (base, tuned) and base != tuned:
                raise DialdownError(
                    f"The means of {self.record.get('model')} and of {after.record.get('model')} "
                    f"are over {differ}, so their difference is not what tuning changed: collect "
                    "both with dd.mean_activations on the same prompts and with the same lengths."
                )

    def check_model(self, lm: LM) -> None:
        """Refuse to be taken for means of `lm` where they are of a model of another name
        (DialdownError).
        """
        name = self.record.get("model")
        # A model may have moved, or have been fetched from the hub.
        if name is not None and Path(name).name != Path(lm.name).name:
            raise DialdownError(
                f"The means are of {name} and were given with {lm.name}, whose neurons have other "
                "ones: collect them with dd.mean_activations on this model."
            )


def mean_activations(
    lm: LM,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 20,
    max_prompt_tokens: int = 32,
    batch_size: BatchSize = AUTO,
    protocol: Protocol = "strict",
) -> NeuronMeans:
    """Mean activations over `prompts`, collected while decoding `max_new_tokens` greedily (METHOD
    §3).

    Raises:
        DialdownError: empty prompts, a prompt longer than the context, or an activation that is not
            a finite number.
    """
    check_protocols(protocol)
    decoder = Decoder(
        lm,
        prompts,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        batch_size=batch_size,
        share_prefixes=False,
    )
    _, means = decode_with_means(decoder, protocols=(protocol,))
    return means[protocol]


def decode_with_means(
    decoder: Decoder, *, protocols: Sequence[Protocol] = ("strict", "paper")
) -> tuple[list[list[int]], dict[Protocol, NeuronMeans]]:
    """Decode once and average the activations under each protocol: the new token ids of each
    prompt, and the means by protocol. `paper` needs a forward pass more, for the last token.

    Raises:
        DialdownError: an activation is not a finite number, or no real token was generated.
    """
    lm, rows = decoder.lm, len(protocols)
    shape = (lm.view.n_layers, rows, lm.view.n_neurons)
    sums = torch.zeros(shape, dtype=torch.float64, device=lm.device)
    counts = torch.zeros(rows, dtype=torch.float64, device=lm.device)
    latest: dict[int, Tensor] = {}

    def keep(index: int, m: Tensor) -> None:
        # A copy, so that the activations of a whole prompt are not kept alive by a view of its
        # last position.
        latest[index] = m[:, -1].to(lm.device, torch.float64)

    def add(step: Step) -> None:
        positions = {"strict": step.producing, "paper": step.generated}
        weights = torch.stack([positions[protocol] for protocol in protocols])
        weights = weights.to(lm.device, torch.float64)
        counts.add_(weights.sum(-1))
        for index, activations in latest.items():
            sums[index].addmm_(weights, activations)

    def decode() -> list[list[int]]:
        sums.zero_()
        counts.zero_()
        latest.clear()
        with neuron_hooks(lm, keep):
            return decoder.run(observe=add, extra_step="paper" in protocols)

    tokens = decoder.fitted(decode)
    if len(latest) < lm.view.n_layers or not counts.all():
        raise DialdownError(
            f"No activation of {lm.name} was averaged while decoding: every prompt ended at once, "
            "or the model skips its MLPs; pass other prompts."
        )
    for index, of_layer in enumerate(sums):
        check_finite(lm, of_layer, f"activations in layer {index}")
    record = {
        **lm.describe(),
        "prompts": len(decoder.prompts),
        # A mean does not depend on their order.
        "prompt_ids": fingerprint(sorted(decoder.encoded)),
        "max_new_tokens": decoder.max_new_tokens,
        "torch": torch.__version__,
    }
    means = {}
    for row, protocol in enumerate(protocols):
        averages = (sums[:, row] / counts[row]).cpu().numpy()
        means[protocol] = NeuronMeans(averages, int(counts[row]), protocol, record)
    return tokens, means


def token_activations(
    lm: LM, encoded: Sequence[Sequence[int]], layer: int, *, batch_size: int = 16
) -> list[NDArray[np.float32]]:
    """What each neuron of a layer does while the model reads texts, token ids of each, none of them
    empty: for each text (tokens, F) float32. There must be such a layer (DialdownError).
    """
    if not 0 <= layer < lm.view.n_layers:
        raise DialdownError(
            f"{lm.name} has no layer {layer}: pass a number from 0 to {lm.view.n_layers - 1}."
        )
    kept: list[Tensor] = []

    def keep(index: int, m: Tensor) -> None:
        kept.append(m.float().cpu())

    rows: list[NDArray[np.float32]] = [np.empty((0, 0), np.float32)] * len(encoded)
    with neuron_hooks(lm, keep, [layer]), torch.inference_mode():
        for batch in batches(lm, encoded, batch_size):
            read(lm, batch)
            # Padding is on the left.
            for row, m in zip(batch.rows, kept.pop(), strict=True):
                rows[row] = m[-len(encoded[row]) :].numpy()
    return rows
