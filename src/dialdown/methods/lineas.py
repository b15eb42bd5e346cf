"""LinEAS: affine maps of all layers learned together, so that the activations of toxic texts come
to lie as those of other texts do (METHOD §10; Rodriguez et al., 2025).

With a the mean activations of n toxic texts, all maps acting, and b those of n other texts in the
untouched model, the maps make the squared Wasserstein distance of the two small in every channel:

    loss = sum over modules and channels of mean (sorted a - sorted b)^2

AcT fits each channel by itself and hopes that the maps of other layers leave it alone; here a map
answers for what it does to all later ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..interventions.folding import scaled_and_moved
from ..interventions.intervention import Intervention
from ..models.decoding import batches, read
from ..models.forward_pass import frozen
from ..models.lm import LM
from ..models.sites import layer_norms
from ..training.settings import check_positive
from .labelled import (
    Labels,
    Pool,
    encode_labelled,
    mean,
    mean_without_sinks,
    minimise,
    ordinary,
    pooled,
)
from .places import MethodSite, Places, places_of

Map = tuple[Tensor, Tensor]
# Texts whose activations say how large a module's are.
UNITS_FROM = 32


def lineas(
    lm: LM,
    texts: Sequence[str],
    labels: Labels,
    *,
    site: MethodSite = "neurons",
    steps: int = 100,
    batch_size: int = 32,
    learning_rate: float = 0.001,
    max_tokens: int = 128,
    seed: int = 0,
) -> Intervention:
    """LinEAS: each activation m becomes gain * m + offset, learned by Adam with a rate that falls
    to 0; an intervention of kind `affine`, or `outputs` at the published site.

    The authors' sparse penalty is left out: what an edit may cost is for the dial.

    Args:
        lm, texts, labels, max_tokens: see `auroc`.
        site: see `linear_act`.
        steps: of the training.
        batch_size: texts of either class drawn for a step, or as many as the smaller class has. Of
            few, sorting tells little, and gains fall because what is drawn is noise.
        learning_rate: of gains, and of offsets in units of a module's root mean square.
        seed: of the draws.

    Raises:
        DialdownError: a setting that cannot train; see `encode_labelled`; no such site, or an
            activation, the loss or a map is not a finite number.
    """
    settings = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    check_positive("LinEAS cannot learn", **settings)
    places = places_of(lm, site, layer_norms)
    encoded, toxic, record = encode_labelled(lm, texts, labels, max_tokens)
    classes = [[encoded[row] for row in np.flatnonzero(toxic == of)] for of in (True, False)]
    goals = _read(places, classes[1], mean_without_sinks if places.neurons else mean)
    units = _sizes(places, classes[1][:UNITS_FROM])
    size = min(batch_size, *map(len, classes))
    drawn = np.random.default_rng(seed)

    def distance(maps: Mapping[str, Map]) -> Tensor:
        rows, beside = (drawn.choice(len(ids), size, replace=False) for ids in classes)
        # An offset of 1 is as large as what the module has.
        scaled = {path: (gain, units[path] * offset) for path, (gain, offset) in maps.items()}
        of_others = {path: means[beside] for path, means in goals.items()}
        return _distance(places, [classes[0][row] for row in rows], scaled, of_others)

    rates = [learning_rate * (1 + np.cos(np.pi * step / steps)) / 2 for step in range(steps)]
    maps = _learned(places, distance, rates)
    gain = np.concatenate([_numbers(gain) for gain, _ in maps.values()])
    offset = np.concatenate([units[path] * _numbers(offset) for path, (_, offset) in maps.items()])
    return places.edit("lineas", "affine", gain, offset, {**record, **settings, "seed": seed})


def _read(
    places: Places, ids: Sequence[Sequence[int]], pool: Pool
) -> dict[str, NDArray[np.float64]]:
    """One number of each text for every channel, (texts, channels) of each module."""
    return dict(zip(places.widths, pooled(places, ids, pool, [*places.widths]), strict=True))


def _sizes(places: Places, ids: Sequence[Sequence[int]]) -> dict[str, float]:
    """The root mean square of each module's activations, or 1 where all are 0."""

    def square(m: Tensor, tokens: Tensor) -> Tensor:
        return mean(m.double().square(), ordinary(m, tokens) if places.neurons else tokens)

    squares = _read(places, ids, square)
    return {path: float(np.sqrt(each.mean())) or 1.0 for path, each in squares.items()}


def _learned(
    places: Places, distance: Callable[[Mapping[str, Map]], Tensor], rates: Sequence[float]
) -> dict[str, Map]:
    """Gains and offsets of each module that make a distance small, by Adam."""
    with frozen(places.lm.model):
        maps = {path: _identity(places.lm, path, width) for path, width in places.widths.items()}
        optimizer = torch.optim.Adam([number for pair in maps.values() for number in pair])
        minimise(places.lm, optimizer, lambda _: distance(maps), rates, "learning maps")
    return maps


def _identity(lm: LM, path: str, width: int) -> Map:
    """Gains of 1 and offsets of 0 where a module is, to be learned."""
    device = next(lm.model.get_submodule(path).parameters()).device
    return (
        torch.ones(width, device=device, requires_grad=True),
        torch.zeros(width, device=device, requires_grad=True),
    )


def _numbers(parameter: Tensor) -> NDArray[np.float64]:
    return parameter.detach().cpu().double().numpy()


def _distance(
    places: Places,
    ids: Sequence[Sequence[int]],
    maps: Mapping[str, Map],
    goals: Mapping[str, NDArray[np.float64]],
) -> Tensor:
    """The loss of some texts, with the maps acting, beside means (texts, channels) of others."""
    (batch,) = batches(places.lm, ids, len(ids))
    tokens = batch.mask[..., None] == 1
    pool = mean_without_sinks if places.neurons else mean
    distances = []

    def act(path: str, m: Tensor) -> Tensor:
        moved = scaled_and_moved(m, *maps[path])
        reached = pool(moved, tokens.to(m.device)).sort(0).values
        goal = torch.as_tensor(np.sort(goals[path], axis=0)).to(reached)
        distances.append((reached - goal).square().mean(0).sum().to(places.lm.device))
        return moved.to(m)

    with places.hooks(act, [*maps]) as called:
        read(places.lm, batch)
        places.check_ran([*called.values()], [*maps])
    return torch.stack(distances).sum()
