"""LinEAS: affine maps of all layers learned together, so that the activations of toxic texts come
to lie as those of other texts do (METHOD §10; Rodriguez et al., 2025).

With a the mean activations of n toxic texts, all maps acting, and b those of n other texts in the
untouched model, the maps make the squared Wasserstein distance of the two small in every channel:

    loss = sum over modules and channels of mean (sorted a - sorted b)^2

AcT fits each channel by itself and hopes that the maps of other layers leave it alone; here a map
answers for what it does to all later ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from ..progress import Progress, with_bar
from ..training.generated_text import check_finite
from .labelled import Labels, Pool, encode_labelled, mean, mean_without_sinks, pooled
from .places import MethodSite, Places, places_of

Map = tuple[Tensor, Tensor]


@with_bar
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
    progress: Progress | None = None,
) -> Intervention:
    """LinEAS: each activation m becomes gain * m + offset, learned by Adam with a rate that falls
    to 0; an intervention of kind `affine`, or `outputs` at the published site.

    The authors' sparse penalty is left out: what an edit may cost is for the dial.

    Args:
        lm, texts, labels, max_tokens, progress: see `auroc`.
        site: see `linear_act`.
        steps: of the training.
        batch_size: texts of either class drawn for a step, or as many as the smaller class has.
        learning_rate: of gains, and of offsets in units of a module's root mean square.
        seed: of the draws.

    Raises:
        DialdownError: see `encode_labelled`; no such site, or an activation or the loss is not a
            finite number.
    """
    places = places_of(lm, site, layer_norms)
    encoded, toxic, record = encode_labelled(lm, texts, labels, max_tokens)
    pool = mean_without_sinks if places.neurons else mean

    def tell(done: int, total: int) -> None:
        if progress:
            progress("reading labelled texts", done, total)

    toxic_ids, other_ids = ([encoded[row] for row in np.flatnonzero(toxic == of)] for of in (1, 0))
    means = pooled(places, other_ids, pool, [*places.widths], tell)
    targets = dict(zip(places.widths, means, strict=True))
    units = _sizes(places, other_ids[:batch_size], pool)
    parameters = {path: _identity(lm, path, width) for path, width in places.widths.items()}
    rates = torch.optim.Adam([number for pair in parameters.values() for number in pair], lr=1.0)
    size = min(batch_size, len(toxic_ids), len(other_ids))
    generator = np.random.default_rng(seed)
    for step in range(steps):
        for group in rates.param_groups:
            group["lr"] = learning_rate * (1 + np.cos(np.pi * step / steps)) / 2
        drawn, beside = (
            generator.choice(len(ids), size, replace=False) for ids in (toxic_ids, other_ids)
        )
        maps = {path: (gain, units[path] * o) for path, (gain, o) in parameters.items()}
        goals = {path: b[beside] for path, b in targets.items()}
        rates.zero_grad()
        loss = _distance(places, [toxic_ids[row] for row in drawn], pool, maps, goals)
        check_finite(lm, loss)
        loss.backward()  # type: ignore[no-untyped-call]
        rates.step()
        if progress:
            progress("learning maps", step + 1, steps)
    gain = np.concatenate([_numbers(gain) for gain, _ in parameters.values()])
    offset = np.concatenate(
        [units[path] * _numbers(offset) for path, (_, offset) in parameters.items()]
    )
    return places.edit("lineas", "affine", gain, offset, {**record, "steps": steps, "seed": seed})


def _sizes(places: Places, ids: Sequence[Sequence[int]], pool: Pool) -> dict[str, float]:
    """The root mean square of each module's activations, or 1 where all are 0."""

    def square(m: Tensor, own: Tensor) -> Tensor:
        return pool(m.double().square(), own)

    squares = pooled(places, ids, square, [*places.widths], lambda done, total: None)
    sizes = (float(np.sqrt(each.mean())) or 1.0 for each in squares)
    return dict(zip(places.widths, sizes, strict=True))


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
    pool: Pool,
    maps: Mapping[str, Map],
    goals: Mapping[str, NDArray[np.float64]],
) -> Tensor:
    """The loss of some texts, with the maps acting, beside means (texts, channels) of others."""
    (batch,) = batches(places.lm, ids, len(ids))
    own = batch.mask[..., None] == 1
    distances = []

    def act(path: str, m: Tensor) -> Tensor:
        moved = scaled_and_moved(m, *maps[path])
        reached = pool(moved, own.to(m.device)).sort(0).values
        goal = torch.as_tensor(np.sort(goals[path], axis=0)).to(reached)
        distances.append((reached - goal).square().mean(0).sum().to(places.lm.device))
        return moved.to(m)

    with frozen(places.lm.model), places.hooks(act, [*maps]) as called:
        read(places.lm, batch)
        places.check_ran([*called.values()], [*maps])
    return torch.stack(distances).sum()
