"""Interventions on neurons: the values, how they act while a model runs, and how they fold into
weights (METHOD §4, §7).

All kinds but one are one affine map per neuron, m_i <- gain_i * m_i + offset_i:

    set    gain 0, offset c_i        a constant
    shift  gain 1, offset delta_i    a move
    scale  gain s_i, offset 0        one number per neuron; the only kind that folds without a bias
    affine gain s_i, offset delta_i  both

`rank_one` lets each layer's MLP or attention write along a direction more, or a few (`RankOne`),
`outputs` is an affine map of what linear layers or norms write (`Outputs`), and `steer` moves the
final-layer residual stream, x^L <- x^L - alpha * W. Since what writes is linear, all of it folds
into weights exactly (see `Fold`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import DialdownError, nearest
from ..files import fingerprint, read_arrays, write_arrays
from ..models.bias import ensure_bias
from ..models.fits import check_neurons, check_width
from ..models.hooks import Positions, being_changed, changing, neuron_hooks, residual_hook
from ..models.lm import LM
from ..models.mlp import check_in_place
from ..models.sites import projections
from ..models.written import check_written
from .described import acts_on, card_of
from .edit_file import KIND_OF, Kind, check_edit, check_strength, dialled, narrow, of_one_shape
from .folding import Fold, affine_hook, check_can_fold, restored, shared_projections, steering_hook
from .outputs import Outputs, output_map_hooks
from .rank_one import RankOne, rank_one_hooks


@dataclass(frozen=True, eq=False)
class Intervention:
    """A change to some neurons (or to the residual stream) of one model, as a value.

    Attributes:
        name: the stable name its results carry, for example `patch_TP_AN`.
        kind: `set`, `shift`, `scale`, `affine`, `rank_one`, `outputs`, `steer`, or `none` for the
            untouched model.
        gain: (L, F) float64, what each activation is multiplied by: 1 where none is given; shape
            (0, 0) where no neuron is touched.
        offset: (L, F) float64, what is then added, in units of the activation: 0 where none is.
        selected: (L, F) bool, the neurons that were chosen (also those whose value happens to
            change nothing); those that change where none is given.
        rank_one: what each layer writes besides, or None.
        outputs: what becomes of the outputs of linear layers or norms, or None.
        vector: (d,) float64, what is added to the final-layer residual (-alpha * W), or None.
        alpha: the fraction selected per group, or the steering strength as it acts, dialled
            included; None where neither applies.
        beta: the strength of an edit (METHOD §4) as it acts; of a `set` that of its constants,
            how far towards them is `record["strength"]`; or None.
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
    outputs: Outputs | None = None
    vector: NDArray[np.float64] | None = None
    alpha: float | None = None
    beta: float | None = None
    control_of: str | None = None
    record: dict[str, Any] = field(default_factory=dict)
    family: str = ""
    strength: str = ""
    control: str = ""

    def __post_init__(self) -> None:
        arrays = of_one_shape(self.name, self.gain, self.offset, self.selected)
        for name, array in arrays.items():
            object.__setattr__(self, name, array)

    def __repr__(self) -> str:
        numbers = {"α": self.alpha, "β": self.beta, "strength": self.record.get("strength")}
        given = [f"{name} {number:.4g}" for name, number in numbers.items() if number is not None]
        return f"Intervention({self.name}: {', '.join([self.kind, *acts_on(self), *given])})"

    def _repr_html_(self) -> str:
        return card_of(self)

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
    def acts_in_layers(self) -> bool:
        """Whether it acts inside of any layer (steering does not)."""
        further = (self.rank_one and self.rank_one.layers) or (self.outputs and self.outputs.maps)
        return bool(self._moved or further)

    @property
    def _moved(self) -> list[int]:
        """The layers whose neurons have a gain or an offset."""
        return np.flatnonzero((self.gain != 1).any(-1) | self.offset.any(-1)).tolist()

    @property
    def key(self) -> str:
        """Equal for two interventions that do the same to a model, whatever they are called."""
        vector = np.zeros(0) if self.vector is None else self.vector
        further = [] if self.rank_one is None else [*vars(self.rank_one).values()]
        if (outputs := self.outputs) is not None:
            further += [[*outputs.widths.items()], outputs.gain, outputs.offset]
        return fingerprint(self.gain, self.offset, vector, *further)

    def at(self, strength: float) -> Intervention:
        """The same intervention dialled to `strength`: 0 does nothing, 1 is this one, more goes on
        in a straight line.

        The line is one of effects, m_i <- m_i + strength * (gain_i * m_i + offset_i - m_i), so a
        `set` at half strength moves every activation half of the way to its constant.

        Raises:
            DialdownError: a strength that is not a finite number.
        """
        check_strength(strength)
        strength = float(strength)
        alpha, beta = dialled(self.kind, self.alpha, self.beta, strength)
        return replace(
            self,
            gain=1 + strength * (self.gain - 1),
            offset=strength * self.offset,
            rank_one=self.rank_one and self.rank_one.at(strength),
            outputs=self.outputs and self.outputs.at(strength),
            vector=None if self.vector is None else strength * self.vector,
            alpha=alpha,
            beta=beta,
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
            arrays |= {name: narrow(getattr(self.rank_one, name)) for name in ("reads", "writes")}
        if self.outputs is not None:
            arrays["output_gain"] = narrow(self.outputs.gain)
            arrays["output_offset"] = self.outputs.offset
        if self.vector is not None:
            arrays["vector"] = self.vector
        if broken := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
            raise DialdownError(
                f"The {broken[0]} of {self.name} has numbers that are not finite: make it again."
            )
        record: dict[str, Any] = {
            name: getattr(self, name) for name in ("name", "alpha", "beta", "control_of", "record")
        }
        if self.rank_one is not None:
            record["site"] = self.rank_one.site
        if self.outputs is not None:
            record["outputs"] = [*self.outputs.widths.items()]
        if also := {KIND_OF[name] for name in arrays if name in KIND_OF} - {self.kind}:
            record["also"] = sorted(also)
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
        rank_one = None
        if "reads" in wide:
            rank_one = RankOne(wide["reads"], wide["writes"], header.site)
        outputs = None
        if "output_gain" in wide:
            outputs = Outputs(dict(header.outputs), wide["output_gain"], wide["output_offset"])
        return cls(
            header.name,
            header.effect,
            wide["gain"],
            wide.get("offset", np.zeros_like(wide["gain"])),
            arrays["selected"],
            rank_one=rank_one,
            outputs=outputs,
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
        steered = [False]
        with ExitStack() as stack:
            if self.acts_in_layers:
                stack.enter_context(changing(lm))
            # What is read of activations before they are edited is put in first.
            if self.rank_one is not None:
                reads = stack.enter_context(rank_one_hooks(lm, self.rank_one, positions))
            hook = affine_hook(lm, self.gain, self.offset, self._moved, positions)
            called = stack.enter_context(neuron_hooks(lm, hook, self._moved))
            mapped: dict[str, bool] = {}
            if self.outputs is not None:
                mapped = stack.enter_context(output_map_hooks(lm, self.outputs, positions))
            if self.vector is not None:
                stack.enter_context(residual_hook(lm, steering_hook(self.vector, steered)))
            yield
        silent = [lm.view.layers[index].path for index in self._moved if not called[index]]
        if self.rank_one is not None:
            site = projections(lm, self.rank_one.site)
            silent += [site[index].path for index in self.rank_one.layers if not reads[index]]
        silent += [path for path, ran in mapped.items() if not ran]
        if self.vector is not None and not steered[0]:
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
        for fold in self.folds(folded):
            fold.write()
        return replace(folded, name=f"{lm.name} + {self.name}")

    @contextmanager
    def folded_into(self, lm: LM) -> Iterator[None]:
        """Be folded into the weights of `lm` itself inside the context, and leave it bit-identical
        afterwards.

        Unlike hooks it costs a forward pass nothing, and unlike `fold` no second model: of the
        layers it touches, the columns are kept. A bias that the architecture has no place for is
        there inside the context only (see `holds_bias`).

        Raises:
            DialdownError: see `check_foldable`; or it steers, which is not an edit of neurons.
        """
        self.check_foldable(lm)
        check_in_place(lm.model)
        if self.vector is not None:
            raise DialdownError(
                f"{self.name} steers, so no neuron's weights can hold it: use `applied`, or `fold`."
            )
        folds = self.folds(lm)
        with restored(folds):
            for fold in folds:
                fold.write()
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
        self.check(lm)
        narrow = lm.view.layers[0].columns.itemsize <= 2
        folds = narrow and positions == "all" and self.acts_in_layers and self.vector is None
        folds = folds and not (self.outputs and self.outputs.unheld_offset(lm))
        by_weights = folds and not being_changed(lm) and not shared_projections(lm, self.folds(lm))
        with self.folded_into(lm) if by_weights else self.applied(lm, positions=positions):
            yield

    @property
    def needs_bias(self) -> bool:
        """Whether folding writes to the bias of a down projection."""
        return self.vector is not None or bool(self.offset.any())

    def folds(self, lm: LM) -> list[Fold]:
        """What it makes of each linear layer that folding changes (METHOD §7); steering is a bias
        of the last MLP's.

        Of `lm` only the architecture counts: it may lie on the meta device.
        """
        further = self.rank_one
        sites = {"mlp": [Fold(down) for down in lm.view.layers]}
        for index in self._moved:
            offset = self.offset[index] if self.offset[index].any() else None
            sites["mlp"][index] = replace(sites["mlp"][index], gain=self.gain[index], offset=offset)
        if self.vector is not None:
            residual = self.vector / lm.view.residual_multiplier
            sites["mlp"][-1] = replace(sites["mlp"][-1], residual=residual)
        if further is not None:
            site = sites.setdefault(further.site, [*map(Fold, projections(lm, further.site))])
            for index in further.layers:
                site[index] = replace(site[index], rank_one=further.of(index))
        folds = {fold.projection.path: fold for site in sites.values() for fold in site}
        for path, mapped in (self.outputs.folds(lm) if self.outputs else {}).items():
            combined = replace(folds.get(path, mapped), output=mapped.output, less=mapped.less)
            folds[path] = combined
        return [fold for fold in folds.values() if fold.changes]

    def check_foldable(self, lm: LM) -> None:
        """Refuse to fold into a model of another shape, one that an intervention acts on, or shared
        matrices (DialdownError).
        """
        self.check(lm)
        check_can_fold(lm, self.name, self.folds(lm))
        if self.outputs is not None:
            self.outputs.check_foldable(lm, self.name)
        if self.vector is not None:
            check_written(lm)

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
        if self.outputs is not None:
            self.outputs.check(lm, self.name)


def untouched(name: str = "none") -> Intervention:
    """The intervention that does nothing: the reference row of every table."""
    return Intervention(name, "none", family=name)
