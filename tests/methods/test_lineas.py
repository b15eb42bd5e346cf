"""LinEAS beside its loss and its gradient, written out in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dialdown as dd
from dialdown import methods
from dialdown.interventions import Intervention
from dialdown.models import LM
from dialdown.models.sites import layer_norms
from helpers import tiny
from helpers.labelled import CLEAN, LABELS, TEXTS, TOXIC

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
        length = out[0].norm(dim=-1)
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


def distance(
    twin: LM, paths: list[str], site: str, maps: Maps, toxic: list[str], other: list[str]
) -> Tensor:
    reached, goals = (
        means_of(twin, toxic, paths, site, maps),
        means_of(twin, other, paths, site, {}),
    )
    gaps = [reached[path].sort(0).values - goals[path].sort(0).values for path in paths]
    return torch.stack([gap.square().mean(0).sum() for gap in gaps]).sum()


def maps_of(edit: Intervention, paths: list[str]) -> Maps:
    numbers = edit.outputs or edit
    gain, offset = (
        torch.as_tensor(each).reshape(len(paths), -1) for each in (numbers.gain, numbers.offset)
    )
    return {path: (gain[at], offset[at]) for at, path in enumerate(paths)}


@pytest.mark.parametrize("site", ["neurons", "published"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_steps_are_adams_on_the_gradient_of_the_whole_loss(name: str, site: Any) -> None:
    lm, rate, steps, size = tiny.lm(name, bos=True), 0.03, 3, 4
    edit = methods.lineas(
        lm, TEXTS, LABELS, site=site, steps=steps, batch_size=size, learning_rate=rate, seed=2
    )
    twin, paths = lm.twin(), modules_of(lm, site)
    twin.model.double()
    squares = means_of(twin, CLEAN, paths, site, {}, square=True)
    units = {path: squares[path].detach().mean().sqrt() for path in paths}
    starts = [(torch.ones, torch.zeros)[at] for _ in paths for at in (0, 1)]
    widths = [each.shape[1] for path in paths for each in (squares[path],) * 2]
    numbers = [make(width).double() for make, width in zip(starts, widths, strict=True)]
    first, second = ([torch.zeros_like(each) for each in numbers] for _ in range(2))
    drawn = np.random.default_rng(2)
    for step in range(steps):
        toxic, other = (
            [texts[row] for row in drawn.choice(len(texts), size, replace=False)]
            for texts in (TOXIC, CLEAN)
        )
        numbers = [each.requires_grad_(True) for each in numbers]
        maps = {
            path: (numbers[2 * at], units[path] * numbers[2 * at + 1])
            for at, path in enumerate(paths)
        }
        slopes = torch.autograd.grad(distance(twin, paths, site, maps, toxic, other), numbers)
        first = [0.9 * m + 0.1 * slope for m, slope in zip(first, slopes, strict=True)]
        second = [0.999 * v + 0.001 * slope**2 for v, slope in zip(second, slopes, strict=True)]
        falling = rate * (1 + np.cos(np.pi * step / steps)) / 2
        numbers = [
            (
                each
                - falling
                * (m / (1 - 0.9 ** (step + 1)))
                / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
            ).detach()
            for each, m, v in zip(numbers, first, second, strict=True)
        ]
    for at, (path, (gain, offset)) in enumerate(maps_of(edit, paths).items()):
        # A slope near 0 has a sign of its own in float32, and Adam goes as far by it.
        for found, expected in (
            (gain, numbers[2 * at]),
            (offset / units[path], numbers[2 * at + 1]),
        ):
            close = torch.isclose(found, expected, atol=2e-4, rtol=0)
            assert close.float().mean() > 0.95, (path, (found - expected).abs().max())


@pytest.mark.parametrize("site", ["neurons", "published"])
def test_the_texts_come_to_lie_as_the_others_do(site: Any) -> None:
    lm = tiny.lm("llama", bos=True)
    twin, paths = lm.twin(), modules_of(lm, site)
    twin.model.double()
    edit = methods.lineas(lm, *EVEN, site=site, steps=100, learning_rate=0.02)
    with torch.no_grad():
        untouched = distance(twin, paths, site, {}, TOXIC, EVEN[0][len(TOXIC) :])
        reached, fitted_alone = (
            distance(twin, paths, site, maps_of(found, paths), TOXIC, EVEN[0][len(TOXIC) :])
            for found in (edit, methods.linear_act(lm, *EVEN, site=site))
        )
    assert reached < 0.5 * untouched
    assert reached < fitted_alone


def test_draws_come_from_the_seed_whatever_the_caller_does_with_gradients(llama: LM) -> None:
    def learn(seed: int) -> Intervention:
        return methods.lineas(llama, *EVEN, steps=3, batch_size=4, seed=seed)

    first, other = learn(0), learn(1)
    with torch.inference_mode():
        assert learn(0).key == first.key != other.key
    assert (first.kind, first.name) == ("affine", "lineas")
    learnt = {"steps": 3, "batch_size": 4, "learning_rate": 0.001, "seed": 0}
    assert learnt.items() <= first.record.items()
    assert all(weight.requires_grad for weight in tiny.lm("llama").model.parameters())


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"batch_size": -1}, {"learning_rate": float("nan")}]
)
def test_settings_that_cannot_learn_are_refused(llama: LM, wrong: dict[str, Any]) -> None:
    with pytest.raises(dd.DialdownError, match=f"learn with {next(iter(wrong))} = .* above 0"):
        methods.lineas(llama, *EVEN, **wrong)


def test_maps_that_overflow_are_refused() -> None:
    lm = tiny.lm("llama", dtype=torch.float16)
    with torch.no_grad():
        lm.model.model.layers[-1].mlp.up_proj.weight.mul_(1000)
    with pytest.raises(dd.DialdownError, match="load it in float32 or bfloat16"):
        methods.lineas(lm, *EVEN, steps=1)
