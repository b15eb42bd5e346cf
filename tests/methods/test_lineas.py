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
Maps = dict[str, tuple[Tensor, Tensor]]


def modules_of(lm: LM, site: str) -> list[str]:
    if site == "neurons":
        return [layer.path for layer in lm.view.layers]
    return [path for layer in layer_norms(lm) for path in layer]


def means_of(twin: LM, texts: list[str], paths: list[str], site: str, maps: Maps) -> dict[str, Any]:
    """The mean over tokens at each module, (texts, channels) float64, one text after the other."""
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}

    def moved(path: str, m: Tensor) -> Tensor:
        gain, offset = maps.get(path, (1.0, 0.0))
        out = gain * m + offset
        length = out[0].norm(dim=-1)
        # Of neurons, attention sinks are left out.
        most = 4 * length.quantile(0.5, interpolation="lower") if site == "neurons" else np.inf
        seen[path].append(out[0][length <= most].mean(0))
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
    width = edit.outputs.gain.size if edit.outputs else edit.gain.size
    gain = torch.ones(width, dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(width, dtype=torch.float64, requires_grad=True)
    parts = zip(gain.chunk(len(paths)), offset.chunk(len(paths)), strict=True)
    distance(twin, paths, site, dict(zip(paths, parts, strict=True))).backward()
    goals = means_of(twin, CLEAN[: len(TOXIC)], paths, site, {})
    spreads = torch.stack([goals[path].var(0, correction=0).mean().sqrt() for path in paths])
    found = edit.outputs or edit
    for moved, slope, rate in (
        (found.gain.reshape(-1) - 1, gain.grad, 0.02),
        (
            found.offset.reshape(len(paths), -1) / spreads[:, None].detach().numpy(),
            offset.grad,
            0.02,
        ),
    ):
        assert slope is not None
        steep = (slope.abs() > 1e-6 * slope.abs().max()).numpy()
        assert steep.mean() > 0.9
        expected = -rate * slope.sign().numpy()
        np.testing.assert_allclose(moved.reshape(-1)[steep], expected[steep], atol=2e-4)


@pytest.mark.parametrize("site", ["neurons", "published"])
def test_the_texts_come_to_lie_as_the_others_do(site: Any) -> None:
    lm = tiny.lm("llama", bos=True)
    twin, paths = lm.twin(), modules_of(lm, site)
    twin.model.double()
    edit = methods.lineas(lm, *EVEN, site=site, steps=60, learning_rate=0.03)
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
