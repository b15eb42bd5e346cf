"""Where a method from labelled texts reads and acts: the neurons, or outputs of linear layers or
norms, as it was published (METHOD §10).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DialdownError, nearest
from ..interventions.intervention import Intervention
from ..interventions.outputs import Outputs
from ..models.hooks import neuron_hooks, output_hooks
from ..models.lm import LM
from ..models.projection import Projection

MethodSite = Literal["neurons", "published"]
"""What a down projection reads, or the outputs that the method's authors act on."""
Act = Callable[[str, Tensor], Tensor | None]


@dataclass(frozen=True)
class Places:
    """The modules at which activations are read, layer by layer.

    Attributes:
        lm: the model.
        widths: how many channels each module has there, by its dotted name.
        neurons: whether they are what down projections read, and not what modules write.
    """

    lm: LM
    widths: dict[str, int]
    neurons: bool

    @property
    def channels(self) -> int:
        """Of all modules."""
        return sum(self.widths.values())

    def called(self, path: str) -> str:
        """A module in words."""
        return f"layer {[*self.widths].index(path)}" if self.neurons else path

    def hooks(self, act: Act, paths: Sequence[str]) -> AbstractContextManager[Any]:
        """Call `act(path, activations)` at some of the modules, and pass on what it returns."""
        if not self.neurons:
            return output_hooks({path: self.lm.model.get_submodule(path) for path in paths}, act)
        every = [*self.widths]
        layers = [every.index(path) for path in paths]
        return neuron_hooks(self.lm, lambda layer, m: act(every[layer], m), layers)

    def check_ran(self, ran: Sequence[bool], paths: Sequence[str]) -> None:
        """Refuse a model in which one of the modules has no part (DialdownError)."""
        silent = [path for path, called in zip(paths, ran, strict=True) if not called]
        if silent:
            raise DialdownError(
                f"{silent[0]} of {self.lm.name} never ran while texts were read, so nothing can be "
                "learned of it: this model cannot have the method at this site."
            )

    def edit(
        self,
        name: str,
        kind: Literal["shift", "scale", "affine"],
        gain: NDArray[np.float64],
        offset: NDArray[np.float64],
        record: dict[str, Any],
    ) -> Intervention:
        """The intervention of gains and offsets, (channels of all,) each; of neurons of a kind."""
        if not self.neurons:
            outputs = Outputs(self.widths, gain, offset)
            return Intervention(f"{name}_published", "outputs", outputs=outputs, record=record)
        gain, offset = (numbers.reshape(self.lm.view.shape) for numbers in (gain, offset))
        selected = (gain != 1) | (offset != 0)
        return Intervention(name, kind, gain, offset, selected, record=record)


def places_of(
    lm: LM, site: MethodSite, published: Callable[[LM], list[list[str]]] | None = None
) -> Places:
    """The neurons, or the outputs of the modules that `published` finds in each decoder layer."""
    if site not in get_args(MethodSite):
        raise DialdownError(f"Unknown site {site!r}: {nearest(site, get_args(MethodSite))}")
    if site == "neurons" or published is None:
        return Places(lm, {layer.path: lm.view.n_neurons for layer in lm.view.layers}, True)
    paths = [path for layer in published(lm) for path in layer]
    modules = [Projection(path, lm.model.get_submodule(path)) for path in paths]
    return Places(lm, {module.path: len(module.columns) for module in modules}, False)
