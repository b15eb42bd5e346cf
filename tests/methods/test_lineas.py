"""LinEAS beside its loss and its gradient, written out in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dialdown import methods
from dialdown.interventions import Intervention
from dialdown.models import LM
from dialdown.models.sites import layer_norms
from helpers import tiny
from helpers.labelled import CLEAN, TOXIC

EVEN = [*TOXIC, *CLEAN[: len(TOXIC)]], [1] * len(TOXIC) + [0] * len(TOXIC)
Maps = dict[str, tuple[Tensor, ...]]


def modules_of(lm: LM, site: str) -> list[str]:
    if site == "neurons":
        return [layer.path for layer in lm.view.layers]
    return [path for layer in layer_norms(lm) for path in layer]


def means_of(
    twin: LM, texts: list[str], paths: list[str], site: str, maps: Maps, square: bool = False
) -> dict[str, Tensor]:
    """The mean over tokens at each module, or of squares, (texts, channels) float64, one text after
    the other.
    """
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}

    def moved(path: str, m: Tensor) -> Tensor:
        gain, offset = maps.get(path, (1.0, 0.0))
        out = gain * m + offset
        said = out[0].square() if square else out[0]
        length = said.norm(dim=-1)
        # Of neurons, attention sinks are left out.
        most = 4 * length.quantile(0.5, interpolation="lower") if site == "neurons" else np.inf
        seen[path].append(said[length <= most].mean(0))
        return out

    def before(path: str) -> Callable[..., Any]:
        return lambda module, args: (moved(path, args[0]),)

    def after(path: str) -> Callable[..., Any]:
        return lambda module, args, out: moved(path, out)

    handles = []
    for path in paths:
        module = twin.model.get_submodule(path)
        on = module.register_forward_pre_hook if site == "neurons" else module.register_forward_hook
        handles.append(on((before if site == "neurons" else after)(path)))
    for text in texts:
        twin.model(torch.tensor(twin.encode([text])))
    for handle in handles:
        handle.remove()
    return {path: torch.stack(means) for path, means in seen.items()}


def distance(twin: LM, paths: list[str], site: str, maps: Maps) -> Tensor:
    toxic = means_of(twin, TOXIC, paths, site, maps)
    other = means_of(twin, CLEAN[: len(TOXIC)], paths, site, {})
    gaps = [toxic[path].sort(0).values - other[path].sort(0).values for path in paths]
    return torch.stack([gap.square().mean(0).sum() for gap in gaps]).sum()


def maps_of(edit: Intervention, paths: list[str]) -> Maps:
    numbers = edit.outputs or edit
    gain, offset = (
        torch.as_tensor(each).reshape(len(paths), -1) for each in (numbers.gain, numbers.offset)
    )
    return {path: (gain[at], offset[at]) for at, path in enumerate(paths)}


@pytest.mark.parametrize("site", ["neurons", "published"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_the_first_step_is_the_gradients(name: str, site: Any) -> None:
    """Adam moves every number by its rate, down the gradient of the whole loss."""
    lm = tiny.lm(name, bos=True)
    edit = methods.lineas(lm, *EVEN, site=site, steps=1, learning_rate=0.02)
    twin, paths = lm.twin(), modules_of(lm, site)
    twin.model.double()
    moved = maps_of(edit, paths)
    maps = {
        path: tuple(torch.full_like(gain, start, requires_grad=True) for start in (1.0, 0.0))
        for path, (gain, _) in moved.items()
    }
    distance(twin, paths, site, maps).backward()
    squares = means_of(twin, CLEAN[: len(TOXIC)], paths, site, {}, square=True)
    for path, (gain, offset) in moved.items():
        unit = squares[path].detach().mean().sqrt()
        for step, number in zip((gain - 1, offset / unit), maps[path], strict=True):
            assert number.grad is not None
            steep = number.grad.abs() > 1e-6 * number.grad.abs().max()
            assert steep.float().mean() > 0.9
            expected = -0.02 * number.grad.sign()
            torch.testing.assert_close(step[steep], expected[steep], rtol=1e-3, atol=0)


@pytest.mark.parametrize("site", ["neurons", "published"])
def test_the_texts_come_to_lie_as_the_others_do(site: Any) -> None:
    lm = tiny.lm("llama", bos=True)
    twin, paths = lm.twin(), modules_of(lm, site)
    twin.model.double()
    edit = methods.lineas(lm, *EVEN, site=site, steps=100, learning_rate=0.02)
    with torch.no_grad():
        untouched = distance(twin, paths, site, {})
        reached, fitted_alone = (
            distance(twin, paths, site, maps_of(found, paths))
            for found in (edit, methods.linear_act(lm, *EVEN, site=site))
        )
    assert reached < 0.5 * untouched
    assert reached < fitted_alone


def test_draws_come_from_the_seed(llama: LM) -> None:
    first, same, other = (
        methods.lineas(llama, *EVEN, steps=3, batch_size=4, seed=s) for s in (0, 0, 1)
    )
    assert first.key == same.key != other.key
    assert (first.kind, first.name) == ("affine", "lineas")
