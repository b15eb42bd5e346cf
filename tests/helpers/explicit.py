"""What an edit does, number by number in float64, in place of a module's own forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch

from dialdown.interventions import Intervention, RankOne
from dialdown.models import LM
from dialdown.models.sites import projections


def besides(rank_one: RankOne, m: torch.Tensor, layer: int, places: Sequence[int]) -> torch.Tensor:
    """What a layer writes at some positions along its directions, input by input."""
    width = rank_one.writes.shape[-1]
    reads = rank_one.reads[..., layer, :].reshape(-1, m.shape[2])
    writes = rank_one.writes[..., layer, :].reshape(-1, width)
    out = torch.zeros(*m.shape[:2], width, dtype=torch.float64)
    for row, place, (u, v) in product(range(len(m)), places, zip(reads, writes, strict=True)):
        read = sum(float(m[row, place, i]) * u[i] for i in range(m.shape[2]))
        out[row, place] += read * torch.as_tensor(v)
    return out


@contextmanager
def mapped(lm: LM, edit: Intervention, where: str) -> Iterator[None]:
    """Each output of the modules that an edit names, multiplied and moved one by one in float64,
    in place of the module's own forward.
    """
    assert edit.outputs is not None
    modules = {path: lm.model.get_submodule(path) for path in edit.outputs.widths}
    start = 0
    for path, module in modules.items():
        channels = range(start, start + edit.outputs.widths[path])
        start = channels.stop

        def written(x: torch.Tensor, own: Any = module.forward, at: range = channels) -> Any:
            out = own(x).double()
            places = {"all": range(out.shape[1]), "last": [out.shape[1] - 1], "first": [0]}[where]
            for place, (channel, number) in product(places, enumerate(at)):
                gain, offset = edit.outputs.gain[number], edit.outputs.offset[number]
                out[:, place, channel] = gain * out[:, place, channel] + offset
            return out.to(x.dtype)

        module.forward = written
    yield
    for module in modules.values():
        del module.forward


@contextmanager
def explicit(lm: LM, edit: Intervention, where: str) -> Iterator[None]:
    """The same edit as a sum over neurons in float64, in place of the down projection's own
    forward.
    """
    site = projections(lm, edit.rank_one.site if edit.rank_one else "mlp")
    for index, layer in enumerate(site):
        layer.linear.forward = lambda m, index=index, layer=layer: written(m, index, layer)  # type: ignore[method-assign]

    def written(m: torch.Tensor, index: int, layer: Any) -> torch.Tensor:
        edited = m.double().clone()
        places = {"all": range(m.shape[1]), "last": [m.shape[1] - 1], "first": [0]}[where]
        bias = 0 if layer.linear.bias is None else layer.linear.bias.double()
        if edit.rank_one:
            out = edited @ layer.value_vectors("paper").double()
            out += besides(edit.rank_one, m, index, list(places))
            return (out + bias).to(m.dtype)
        for p in places:
            for i in range(m.shape[2]):
                if edit.selected[index, i]:
                    change = {
                        "set": edit.offset[index, i],
                        "shift": edited[:, p, i] + edit.offset[index, i],
                        "scale": edited[:, p, i] * edit.gain[index, i],
                        "affine": edited[:, p, i] * edit.gain[index, i] + edit.offset[index, i],
                    }
                    edited[:, p, i] = change[edit.kind]
        return (edited @ layer.value_vectors("paper").double() + bias).to(m.dtype)

    yield
    for layer in site:
        del layer.linear.forward
