"""Interventions on neurons: the values, how they act while a model runs, and how they fold into
weights (METHOD §4, §7).

All kinds but one are one affine map per neuron, m_i <- gain_i * m_i + offset_i:

    set    gain 0, offset c_i        a constant
    shift  gain 1, offset delta_i    a move
    scale  gain s_i, offset 0        one number per neuron; the only kind that folds without a bias
    affine gain s_i, offset delta_i  both

`rank_one` lets each layer write along one direction more (see `RankOne`), and `steer` moves the
final-layer residual stream, x^L <- x^L - alpha * W. Since the down projection is linear, the map
folds into it exactly: its columns are multiplied by the gains, its weight receives v u^T and its
bias the offsets times the value vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cards import card
from ..errors import DialdownError, nearest
from ..files import fingerprint, read_arrays, write_arrays
from ..models.bias import ensure_bias
from ..models.fits import check_neurons, check_width
from ..models.hooks import Positions, being_changed, changing, neuron_hooks, residual_hook
from ..models.lm import LM
from ..models.mlp import check_in_place
from ..models.written import check_written
from .edit_file import Kind, check_edit, narrow
from .folding import (
    affine_hook,
    check_can_fold,
    fold_columns,
    restored,
    shared_projections,
    steering_hook,
)
from .rank_one import RankOne, rank_one_hooks


@dataclass(frozen=True, eq=False)
class Intervention:
    """A change to some neurons (or to the residual stream) of one model, as a value.

    Attributes:
        name: the stable name its results carry, for example `patch_TP_AN`.
        kind: `set`, `shift`, `scale`, `affine`, `rank_one`, `steer`, or `none` for the untouched
            model.
        gain: (L, F) float64, what each activation is multiplied by; shape (0, 0) where no neuron is
            touched.
        offset: (L, F) float64, what is then added, in units of the activation.
        selected: (L, F) bool, the neurons that were chosen (also those whose value happens to
            change nothing).
        rank_one: what each layer writes besides, or None.
        vector: (d,) float64, what is added to the final-layer residual (-alpha * W), or None.
        alpha: the fraction selected per group, or the steering strength; None where neither
            applies.
        beta: the strength of an edit (METHOD §4), or None.
        control_of: the name of the intervention this one is a control for, or None.
        record: where it came from: model, protocol, direction, ordering, seed.
        family, strength, control: what the name is made of (`called`, `control_for`); empty for an
            intervention with a name of its own.
    """

    name: str
    kind: Kind
    gain: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    offset: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    selected: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))
    rank_one: RankOne | None = None
    vector: NDArray[np.float64] | None = None
    alpha: float | None = None
    beta: float | None = None
    control_of: str | None = None
    record: dict[str, Any] = field(default_factory=dict)
    family: str = ""
    strength: str = ""
    control: str = ""

    def __repr__(self) -> str:
        numbers = {"α": self.alpha, "β": self.beta, "strength": self.record.get("strength")}
        given = [f"{name} {number:.4g}" for name, number in numbers.items() if number is not None]
        size = [f"{self.neurons:,} of {self.selected.size:,} neurons"] if self.gain.size else []
        return f"Intervention({self.name}: {', '.join([self.kind, *size, *given])})"

    def _repr_html_(self) -> str:
        ranges = {
            name: f"{numbers.min():.4g} to {numbers.max():.4g}"
            for name, numbers, rest in (("gains", self.gain, 1), ("offsets", self.offset, 0))
            if (numbers != rest).any()
        }
        facts = {
            "kind": self.kind,
            "neurons": f"{self.neurons:,} of {self.selected.size:,}",
            **ranges,
            "vector": None if self.vector is None else f"length {np.linalg.norm(self.vector):.4g}",
            "α": self.alpha,
            "β": self.beta,
            "control of": self.control_of,
            **self.record,
        }
        title = f"Intervention {self.name}; a bar is the neurons selected in a layer"
        return card(title, facts, bars=self.selected.sum(-1).tolist())

    def called(self, family: str, strength: str = "") -> Intervention:
        """The same under the name `FAMILY@STRENGTH`, or `FAMILY_aA_bB` where the strength is a pair
        of alpha and beta.
        """
        mark = "_" if strength.startswith("a") else "@"
        name = f"{family}{mark}{strength}" if strength else family
        return replace(self, name=name, family=family, strength=strength, control="")

    def control_for(self, main: Intervention, control: str) -> Intervention:
        """The same as the control of `main` called so (METHOD §5), named `MAIN__CONTROL`."""
        return replace(
            self,
            name=f"{main.name}__{control}",
            family=main.family or main.name,
            strength=main.strength,
            control=control,
            control_of=main.name,
        )

    @property
    def neurons(self) -> int:
        """How many neurons were selected."""
        return int(self.selected.sum())

    @property
    def moves_neurons(self) -> bool:
        """Whether it acts on the neurons of any layer (steering does not)."""
        return any(self._touches(index) for index in range(len(self.gain)))

    @property
    def key(self) -> str:
        """Equal for two interventions that do the same to a model, whatever they are called."""
        vector = np.zeros(0) if self.vector is None else self.vector
        further = [] if self.rank_one is None else [self.rank_one.reads, self.rank_one.writes]
        return fingerprint(self.gain, self.offset, vector, *further)

    def at(self, strength: float) -> Intervention:
        """The same intervention dialled to `strength`: 0 does nothing, 1 is this one, more goes on
        in a straight line.

        The line is one of effects, m_i <- m_i + strength * (gain_i * m_i + offset_i - m_i), so a
        `set` at half strength moves every activation half of the way to its constant.

        Raises:
            DialdownError: a strength that is no finite number.
        """
        if not np.isfinite(strength):
            raise DialdownError(
                f"A strength of {strength} cannot be applied: pass a finite number, 1 for the "
                "whole edit."
            )
        return replace(
            self,
            gain=1 + strength * (self.gain - 1),
            offset=strength * self.offset,
            rank_one=self.rank_one and self.rank_one.at(strength),
            vector=None if self.vector is None else strength * self.vector,
            record={**self.record, "strength": strength * self.record.get("strength", 1.0)},
        )

    def save(self, path: str | Path) -> None:
        """Write the intervention as one safetensors file, without offsets that are all zero and in
        float32 what float32 holds.
        """
        arrays: dict[str, NDArray[Any]] = {"gain": narrow(self.gain), "selected": self.selected}
        if self.offset.any():
            arrays["offset"] = self.offset
        if self.rank_one is not None:
            arrays |= {name: narrow(vectors) for name, vectors in vars(self.rank_one).items()}
        if self.vector is not None:
            arrays["vector"] = self.vector
        record = {
            name: getattr(self, name) for name in ("name", "alpha", "beta", "control_of", "record")
        }
        # "kind" in a file's header is the kind of file.
        write_arrays(Path(path), "intervention", arrays, {**record, "effect": self.kind})

    @classmethod
    def load(cls, path: str | Path) -> Intervention:
        """Read what `save` wrote.

        Raises:
            DialdownError: the file is missing, damaged or no intervention.
        """
        arrays, record = read_arrays(Path(path), "intervention")
        header = check_edit(Path(path), arrays, record)
        wide = {
            name: array.astype(np.float64) for name, array in arrays.items() if name != "selected"
        }
        return cls(
            header.name,
            header.effect,
            wide["gain"],
            wide.get("offset", np.zeros_like(wide["gain"])),
            arrays["selected"],
            rank_one=RankOne(wide["reads"], wide["writes"]) if "reads" in wide else None,
            vector=wide.get("vector"),
            alpha=header.alpha,
            beta=header.beta,
            control_of=header.control_of,
            record=header.record,
        )

    @contextmanager
    def applied(self, lm: LM, *, positions: Positions = "all") -> Iterator[None]:
        """Act on `lm` inside the context, and leave it bit-identical afterwards.

        Args:
            lm: the model.
            positions: where in each forward pass: `all` (exactly the folded model), `last` or
                `first` (METHOD §5). Steering always acts at every position (METHOD §4).

        Raises:
            DialdownError: the model has another shape, the policy is unknown, or a forward pass
                inside the context never reached a hook.
        """
        self.check(lm)
        if positions not in get_args(Positions):
            raise DialdownError(
                f"Unknown positions {positions!r}: {nearest(positions, get_args(Positions))}"
            )
        touched = [index for index in range(lm.view.n_layers) if self._touches(index)]
        steered: list[bool] = []
        with ExitStack() as stack:
            if self.moves_neurons:
                stack.enter_context(changing(lm))
            # What is read of activations before they are edited is put in first.
            if self.rank_one is not None:
                stack.enter_context(rank_one_hooks(lm, self.rank_one, positions))
            hook = affine_hook(lm, self.gain, self.offset, touched, positions)
            calls = stack.enter_context(neuron_hooks(lm, hook, touched))
            if self.vector is not None:
                stack.enter_context(residual_hook(lm, steering_hook(self.vector, steered)))
            yield
        silent = [lm.view.layers[index].path for index in touched if not calls[index]]
        if self.vector is not None and not steered:
            silent.append("the final norm")
        if silent:
            raise DialdownError(
                f"{self.name} was applied to {lm.name} but {silent[0]} never ran: run a forward "
                "pass of lm.model inside the context."
            )

    def fold(self, lm: LM) -> LM:
        """A new model that does by its weights what `applied` does by hooks at every position
        (METHOD §7).

        `scale` and `rank_one` fold into every architecture. The others need a bias on the down
        projection: GPT-2 has one, Llama gets one (`mlp_bias=True`, an option of its own config).

        Raises:
            DialdownError: the architecture has no MLP bias, the model has another shape, or an
                intervention acts on it.
        """
        self.check_foldable(lm)
        check_in_place(lm.model)
        folded = lm.twin()
        if self.needs_bias:
            ensure_bias(folded, self.name)
        for index in range(folded.view.n_layers):
            if self.changes(index, folded):
                self._fold_layer(index, folded)
        return replace(folded, name=f"{lm.name} + {self.name}")

    @contextmanager
    def folded_into(self, lm: LM) -> Iterator[None]:
        """Be folded into the weights of `lm` itself inside the context, and leave it bit-identical
        afterwards.

        Unlike hooks it costs a forward pass nothing, and unlike `fold` no second model: of the
        layers it touches, the columns are kept. A bias that the architecture has no place for is
        there inside the context only (see `holds_bias`).

        Raises:
            DialdownError: see `check_foldable`; or it steers, which is no edit of neurons.
        """
        self.check_foldable(lm)
        check_in_place(lm.model)
        if self.vector is not None:
            raise DialdownError(
                f"{self.name} steers, so no neuron's weights can hold it: use `applied`, or `fold`."
            )
        touched = [index for index in range(lm.view.n_layers) if self._touches(index)]
        layers = [lm.view.layers[index] for index in touched]
        biased = [bool(self.offset[index].any()) for index in touched]
        with restored(layers, biased):
            for index in touched:
                self._fold_layer(index, lm)
            with changing(lm):
                yield

    @contextmanager
    def measured(self, lm: LM, *, positions: Positions = "all") -> Iterator[None]:
        """Act on `lm` as it is measured: like `applied`, and in 16 bits by the very weights that
        `fold` would save.

        Activations of 16 bits that are edited round to others than what edited weights of 16 bits
        make of them, and what is dialled, checked and exported must be one model.

        Raises:
            DialdownError: see `applied`.
        """
        wide = lm.view.layers[0].columns.itemsize > 2
        folds = positions == "all" and self.moves_neurons and self.vector is None
        by_weights = folds and not (wide or being_changed(lm) or shared_projections(lm))
        with self.folded_into(lm) if by_weights else self.applied(lm, positions=positions):
            yield

    @property
    def needs_bias(self) -> bool:
        """Whether folding writes to the bias of a down projection."""
        return self.vector is not None or bool(self.offset.any())

    def changes(self, index: int, lm: LM) -> bool:
        """Whether folding changes the down projection of layer `index`; steering is a bias of the
        last one.
        """
        return self._touches(index) or (self.vector is not None and index == lm.view.n_layers - 1)

    def folded(
        self, index: int, lm: LM, columns: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What the columns (d, F) and the bias (d,) of layer `index` become (METHOD §7), as new
        tensors of their dtypes.

        `lm` gives the architecture only: it may lie on the meta device.
        """
        touched, shape = self._touches(index), columns.shape[1]
        residual = None
        if self.vector is not None and index == lm.view.n_layers - 1:
            residual = self.vector / lm.view.residual_multiplier
        gain = self.gain[index] if touched else np.ones(shape)
        offset = self.offset[index] if touched else np.zeros(shape)
        further = None
        if self.rank_one is not None and self.rank_one.touches(index):
            further = self.rank_one.reads[index], self.rank_one.writes[index]
        return fold_columns(columns, bias, gain, offset, residual, further)

    def check_foldable(self, lm: LM) -> None:
        """Refuse to fold into a model of another shape, one that an intervention acts on, or shared
        matrices (DialdownError).
        """
        self.check(lm)
        check_can_fold(lm, self.name)
        if self.vector is not None:
            check_written(lm)

    def _fold_layer(self, index: int, lm: LM) -> None:
        layer = lm.view.layers[index]
        columns, bias = self.folded(index, lm, layer.columns, layer.down.bias)
        with torch.no_grad():
            layer.columns.copy_(columns)
            if bias is not None:
                layer.down.bias.copy_(bias)

    def _touches(self, index: int) -> bool:
        return self.gain.size > 0 and bool(
            (self.gain[index] != 1).any()
            or self.offset[index].any()
            or (self.rank_one is not None and self.rank_one.touches(index))
        )

    def check(self, lm: LM) -> None:
        """Refuse a model of another shape than the one the intervention was built for
        (DialdownError).
        """
        if self.vector is not None:
            build = "build it from a direction of this model"
            check_width(lm, self.vector.size, f"The vector of {self.name} has", build)
        if self.gain.size:
            build = "build it from this model's own table"
            check_neurons(lm, self.gain.shape, f"{self.name} has", build)
        if self.rank_one is not None:
            self.rank_one.check(lm, self.name)


def untouched(name: str = "none") -> Intervention:
    """The intervention that does nothing: the reference row of every table."""
    return Intervention(name, "none", family=name)
