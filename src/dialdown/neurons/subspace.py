"""The subspace of the value vectors most aligned with a direction, what its directions disagree on
(METHOD §2, appendix G), and the shape of a model's MLPs (table 8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import DialdownError
from ..models.fits import check_neurons, check_width
from ..models.lm import LM, check_pair
from ..models.projection import Projection
from ..models.protocol import Protocol
from .activations import NeuronMeans
from .directions import Direction

# Value vectors turned into float64 at a time, so that a layer of a large model is never there
# twice.
CHUNK = 2048


def svd_subspace(
    lm: LM,
    direction: Direction,
    *,
    neurons: int = 128,
    rank: int = 3,
    protocol: Protocol = "strict",
) -> list[Direction]:
    """Several directions where a probe gives one: the SVD of the value vectors most aligned with it
    (METHOD §2, appendix G).

    The `neurons` value vectors of highest cosine over all layers, each normalised, are the columns
    of a matrix; its first `rank` left singular vectors are the directions.

    Returns:
        Unit vectors `svd_1`, `svd_2`, ... by falling singular value, each with a cosine to
        `direction` of at least 0.

    Raises:
        DialdownError: the direction is of another width, there are fewer neurons than asked for, or
            fewer than `rank` directions in them.
    """
    _check_widths(lm, [direction])
    total, possible = lm.view.n_layers * lm.view.n_neurons, min(neurons, lm.view.d_model)
    if not 0 < neurons <= total:
        raise DialdownError(
            f"{neurons} value vectors were asked for and {lm.name} has {total}: pass neurons from "
            f"1 to {total}."
        )
    if not 0 < rank <= possible:
        raise DialdownError(
            f"{rank} directions were asked for and {neurons} value vectors of width "
            f"{lm.view.d_model} span at most {possible}: pass rank from 1 to {possible}."
        )
    unit = torch.as_tensor(direction.unit)
    vectors = torch.zeros(0, lm.view.d_model, dtype=torch.float64)
    cosines = torch.zeros(0, dtype=torch.float64)
    for layer in lm.view.layers:
        for chunk in _value_vectors(layer, protocol):
            # A value vector of zeros (a pruned neuron) stays zero, with cosine 0.
            normalised = torch.nn.functional.normalize(chunk, dim=1)
            vectors = torch.cat([vectors, normalised])
            cosines = torch.cat([cosines, normalised @ unit])
            best = torch.argsort(cosines, descending=True, stable=True)[:neurons]
            vectors, cosines = vectors[best], cosines[best]
    _, _, axes = np.linalg.svd(vectors.numpy(), full_matrices=False)
    record = {**lm.describe(), "protocol": protocol, "of": direction.name, "neurons": neurons}
    return [
        Direction(
            f"svd_{place}",
            np.asarray(-vector if vector @ direction.unit < 0 else vector),
            "residual",
            record,
        )
        for place, vector in enumerate(axes[:rank], 1)
    ]


def sign_conflicts(
    lm: LM, tuned: LM, directions: Sequence[Direction], base: NeuronMeans, after: NeuronMeans
) -> dict[str, float]:
    """The share of all neurons on which two or more directions disagree (appendix G); an exact zero
    disagrees with nothing.

    Args:
        lm, tuned: the base model, and the model after preference tuning.
        directions: such as `svd_subspace` gives.
        base, after: mean activations of the two models on the same prompts, under one protocol.

    Returns:
        `cosine`: one direction's cosine with the base's value vector is positive and another's
        negative; `projection_change`: one direction's projection grew and another's shrank.
    """
    check_pair(lm, tuned)
    _check_widths(lm, directions)
    if len(directions) < 2:
        raise DialdownError(
            f"{len(directions)} direction has nothing to disagree with: pass two or more, such as "
            "dialdown.neurons.svd_subspace gives."
        )
    collect = "collect both with dd.mean_activations"
    for means in (base, after):
        check_neurons(lm, means.means.shape, "The means have", collect)
    base.check_comparable(after)
    units = torch.as_tensor(np.stack([direction.unit for direction in directions], axis=1))
    counts = np.zeros(2)
    for index, layers in enumerate(zip(lm.view.layers, tuned.view.layers, strict=True)):
        before, now = (
            torch.cat([chunk @ units for chunk in _value_vectors(layer, base.protocol)]).numpy()
            for layer in layers
        )
        change = after.means[index, :, None] * now - base.means[index, :, None] * before
        counts += [((signed > 0).any(1) & (signed < 0).any(1)).sum() for signed in (before, change)]
    cosine, changed = (counts / base.means.size).tolist()
    return {"cosine": cosine, "projection_change": changed}


def mlp_facts(lm: LM) -> dict[str, int | bool | str | None]:
    """Table 8: `layers`, `d_model`, `d_mlp`, the `activation` function by transformers' name, and
    whether the MLP is `gated`.
    """
    config = lm.model.config.get_text_config()
    names = ("hidden_activation", "hidden_act", "activation_function", "activation")
    activations = (getattr(config, name, None) for name in names)
    mlp = lm.model.get_submodule(lm.view.layers[0].path.rpartition(".")[0])
    return {
        "layers": lm.view.n_layers,
        "d_model": lm.view.d_model,
        "d_mlp": lm.view.n_neurons,
        "activation": next((name for name in activations if name is not None), None),
        "gated": any("gate" in name for name, _ in mlp.named_children()),
    }


def _value_vectors(layer: Projection, protocol: Protocol) -> Iterator[Tensor]:
    """The value vectors of a layer in order, (at most CHUNK, d) float64 on the CPU each."""
    for chunk in torch.split(layer.value_vectors(protocol), CHUNK):
        yield chunk.cpu().double()


def _check_widths(lm: LM, directions: Sequence[Direction]) -> None:
    for direction in directions:
        what = f"The direction {direction.name!r} has"
        check_width(lm, direction.vector.size, what, "find it on this model")
