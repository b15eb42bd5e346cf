"""The statistics behind the paper's tables: what tuning did to the neurons, and what they say
(METHOD §2, §3, §9).

The first half reads a compared `NeuronTable` only, the second half the value vectors of a model,
layer by layer. All sums are float64. A share whose whole is zero is None: a model that did not
change has no reduction to take a share of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy.stats import pearsonr
from torch import Tensor

from ..errors import DialdownError
from ..models.fits import check_neurons, check_width
from ..models.lm import LM, MLPLayer, check_pair
from ..models.protocol import Protocol
from .activations import NeuronMeans
from .directions import Direction
from .ranks import percent_shifts, without_tails
from .table import NeuronTable

# Value vectors turned into float64 at a time, so that a layer of a large model is never there
# twice.
CHUNK = 2048


@dataclass(frozen=True)
class Correlation:
    """Pearson's r over n neurons and its two-sided p; both None where one of the two quantities is
    constant.
    """

    r: float | None
    p: float | None
    n: int


@dataclass(frozen=True)
class SignConflicts:
    """Shares of all neurons on which directions of one subspace disagree (appendix G).

    Attributes:
        cosine: one direction's cosine is positive and another's negative.
        projection_change: one direction's projection grew and another's shrank.
    """

    cosine: float
    projection_change: float


def group_shares(table: NeuronTable) -> pl.DataFrame:
    """The four groups, with the condition Delta < 0 and without it (tables 4 and 5).

    Returns:
        One row per group and variant: `group`, `tuning_free`, `count`, `share` (of the neurons of
        all four groups) and `reduction_share` (the sum of Delta over the group / the sum of all
        negative Delta). A tuning-free group also holds neurons with Delta > 0, so its last share is
        a net one and may be negative.

    Raises:
        DialdownError: no tuned model was compared.
    """
    change = table.grid("projection_change")
    reduction = float(change[change < 0].sum())
    rows = []
    for tuning_free in (False, True):
        groups = table.groups(changed=not tuning_free)
        total = sum(int(mask.sum()) for mask in groups.values())
        rows += [
            {
                "group": name,
                "tuning_free": tuning_free,
                "count": int(mask.sum()),
                "share": _share(int(mask.sum()), total),
                "reduction_share": _share(float(change[mask].sum()), reduction),
            }
            for name, mask in groups.items()
        ]
    schema = {"group": pl.String, "tuning_free": pl.Boolean, "count": pl.Int64}
    return pl.DataFrame(rows, schema={**schema, "share": pl.Float64, "reduction_share": pl.Float64})


def negative_shares(table: NeuronTable) -> dict[str, float]:
    """The share of neurons whose mean activation is below zero, of the `base` and the `tuned` model
    (table 13).

    Raises:
        DialdownError: no tuned model was compared.
    """
    return {name: float((table.grid(f"mean_{name}") < 0).mean()) for name in ("base", "tuned")}


def correlations(table: NeuronTable) -> dict[str, Correlation]:
    """Does the shift of the mean activation follow from c_i, or from the base model's mean
    activation? (table 17)

    A shift is before - after, as in the published table: r with the activation is positive where
    means move towards zero.

    Returns:
        `shift_vs_cosine` and `shift_vs_activation`, over all neurons.

    Raises:
        DialdownError: no tuned model was compared.
    """
    base = table.grid("mean_base").ravel()
    shift = base - table.grid("mean_tuned").ravel()
    return {
        "shift_vs_cosine": _pearson(shift, table.grid("cosine").ravel()),
        "shift_vs_activation": _pearson(shift, base),
    }


def reducing_share(table: NeuronTable) -> float:
    """The share of all neurons whose projection on the direction shrank, Delta < 0 (table 18).

    Raises:
        DialdownError: no tuned model was compared.
    """
    return float((table.grid("projection_change") < 0).mean())


def shifts(table: NeuronTable) -> pl.DataFrame:
    """How little each neuron moved: value vectors and mean activations, base to tuned (section
    5.1).

    A neuron whose base mean is near zero has an enormous shift in %, and one such neuron would
    decide a plain mean. So, as in the paper, `percent` is the mean of `percent_shifts` between
    their own 10th and 90th percentile, and `percent_sd` the standard deviation of these. Both are
    signed, so that shifts towards zero and away from it cancel.

    Returns:
        One row per layer and a last one over all, whose `layer` is null: `layer`,
        `value_cosine_mean`, `value_cosine_min`, `shift_mean` (of |shift|), `shift_median`,
        `percent`, `percent_sd`, `percent_median`.

    Raises:
        DialdownError: no tuned model was compared.
    """
    cosine, percents = table.grid("value_cosine"), percent_shifts(table)
    shift = np.abs(table.grid("mean_base") - table.grid("mean_tuned"))
    rows = []
    for layer, part in _layers_and_all(table):
        moved, kept = shift[part].ravel(), without_tails(percents[part])
        kept = kept[~np.isnan(kept)]
        rows.append(
            {
                "layer": layer,
                "value_cosine_mean": float(cosine[part].mean()),
                "value_cosine_min": float(cosine[part].min()),
                "shift_mean": float(moved.mean()),
                "shift_median": float(np.median(moved)),
                "percent": float(kept.mean()) if kept.size else None,
                "percent_sd": float(kept.std()) if kept.size else None,
                "percent_median": float(np.nanmedian(percents[part])) if kept.size else None,
            }
        )
    return _by_layer(rows)


def opposing_effects(table: NeuronTable) -> pl.DataFrame:
    """Neurons that write less of the concept against neurons that write more of it (figure 1).

    Returns:
        One row per layer and a last one over all, whose `layer` is null: `layer`, `down` (the sum
        of negative Delta), `up` (of positive Delta) and `net`, in units of the residual stream.

    Raises:
        DialdownError: no tuned model was compared.
    """
    change = table.grid("projection_change")
    rows = []
    for layer, part in _layers_and_all(table):
        down, up = (float(limit(change[part], 0).sum()) for limit in (np.minimum, np.maximum))
        rows.append({"layer": layer, "down": down, "up": up, "net": down + up})
    return _by_layer(rows)


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
    vectors, cosines = (
        torch.zeros(0, lm.view.d_model, dtype=torch.float64),
        torch.zeros(0, dtype=torch.float64),
    )
    for layer in lm.view.layers:
        for chunk in _value_vectors(layer, protocol):
            # A value vector of zeros (a pruned neuron) stays zero, with cosine 0.
            normalised = torch.nn.functional.normalize(chunk, dim=1)
            vectors, cosines = (
                torch.cat([vectors, normalised]),
                torch.cat([cosines, normalised @ unit]),
            )
            best = torch.argsort(cosines, descending=True, stable=True)[:neurons]
            vectors, cosines = vectors[best], cosines[best]
    _, values, axes = np.linalg.svd(vectors.numpy(), full_matrices=False)
    shares = values**2 / (values**2).sum()
    facts = {**lm.describe(), "protocol": protocol, "of": direction.name, "neurons": neurons}
    return [
        Direction(
            f"svd_{place + 1}",
            np.asarray(-vector if vector @ direction.unit < 0 else vector),
            "residual",
            {
                **facts,
                "singular_value": float(values[place]),
                "share_of_squares": float(shares[place]),
            },
        )
        for place, vector in enumerate(axes[:rank])
    ]


def sign_conflicts(
    lm: LM, tuned: LM, directions: Sequence[Direction], base: NeuronMeans, after: NeuronMeans
) -> SignConflicts:
    """On how many neurons the directions of a subspace disagree (appendix G); an exact zero
    disagrees with nothing.

    Args:
        lm: the base model, whose cosines are compared.
        tuned: the model after preference tuning.
        directions: two or more, such as `svd_subspace` gives.
        base: mean activations of the base model; its protocol says what a neuron writes.
        after: mean activations of the tuned model, same prompts and protocol.

    Raises:
        DialdownError: fewer than two directions, or models, means or directions that do not fit
            each other.
    """
    check_pair(lm, tuned)
    _check_widths(lm, directions)
    if len(directions) < 2:
        raise DialdownError(
            f"{len(directions)} direction has nothing to disagree with: pass two or more, such as "
            "statistics.svd_subspace gives."
        )
    collect = "collect both with dd.mean_activations"
    for means in (base, after):
        check_neurons(lm, means.means.shape, "The means have", collect)
    if base.protocol != after.protocol:
        raise DialdownError(
            f"The means are of two protocols, {base.protocol} and {after.protocol}, and can only "
            f"be compared under one: {collect}."
        )
    units = torch.as_tensor(np.stack([direction.unit for direction in directions], axis=1))
    counts = np.zeros(2)
    for index, layers in enumerate(zip(lm.view.layers, tuned.view.layers, strict=True)):
        before, now = (
            torch.cat([chunk @ units for chunk in _value_vectors(layer, base.protocol)]).numpy()
            for layer in layers
        )
        change = after.means[index, :, None] * now - base.means[index, :, None] * before
        counts += [((signed > 0).any(1) & (signed < 0).any(1)).sum() for signed in (before, change)]
    cosine, changed = counts / base.means.size
    return SignConflicts(float(cosine), float(changed))


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


def _value_vectors(layer: MLPLayer, protocol: Protocol) -> Iterator[Tensor]:
    """The value vectors of a layer in order, (at most CHUNK, d) float64 on the CPU each."""
    for chunk in torch.split(layer.value_vectors(protocol), CHUNK):
        yield chunk.cpu().double()


def _check_widths(lm: LM, directions: Sequence[Direction]) -> None:
    for direction in directions:
        what = f"The direction {direction.name!r} has"
        check_width(lm, direction.vector.size, what, "find it on this model")


def _layers_and_all(table: NeuronTable) -> Iterator[tuple[int | None, int | slice]]:
    yield from ((layer, layer) for layer in range(table.shape[0]))
    yield None, slice(None)


def _by_layer(rows: Sequence[dict[str, int | float | None]]) -> pl.DataFrame:
    return pl.DataFrame(
        rows, schema={name: pl.Int64 if name == "layer" else pl.Float64 for name in rows[0]}
    )


def _pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> Correlation:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(None, None, x.size)
    result = pearsonr(x, y)
    return Correlation(float(result.statistic), float(result.pvalue), x.size)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
