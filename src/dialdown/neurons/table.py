"""The neuron table: what every neuron writes, how active it is, what tuning changed, and the four
groups (METHOD §3).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..cards import card
from ..errors import DialdownError, nearest
from ..files import SCHEMA, write_atomic
from ..models.fits import check_neurons, check_width
from ..models.protocol import Protocol

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    from ..models.lm import LM
    from .activations import NeuronMeans
    from .directions import Direction

GROUPS = ("TP", "TN", "AP", "AN")
"""A neuron writes towards the concept (T, cosine > 0) or against it (A), with a positive (P) or
negative (N) mean activation.
"""
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class NeuronTable:
    """What is known of every neuron: a number of each in every column.

    Columns: `cosine` (c_i of the base model), `mean_base`, `projection_base` (p_i); and, when a
    tuned model was compared, `mean_tuned`, `projection_tuned`, `projection_change` (Delta_i) and
    `value_cosine` (cosine of the neuron's value vector before and after). `judged`, where it is
    there, says that the neuron is one of the toxic neurons a judge found. As a data frame and in a
    file the table has a row per neuron, with its `layer`, `neuron` and `group`, which is null for a
    neuron of no group.

    Attributes:
        columns: by name, (layers, neurons per layer) each.
        record: protocol, direction, models, counts.
    """

    columns: Mapping[str, NDArray[Any]]
    record: dict[str, Any]

    def __repr__(self) -> str:
        layers, neurons = self.shape
        return (
            f"NeuronTable({layers} layers × {neurons:,} neurons of {self.record['base']['model']}, "
            f"{self.protocol}, {self.record['direction']['name']}"
            f"{', with a tuned model' if self.compared else ''})"
        )

    def _repr_html_(self) -> str:
        facts = {
            "model": self.record["base"]["model"],
            "tuned model": self.record.get("tuned", {}).get("model"),
            "protocol": self.protocol,
            "direction": self.record["direction"]["name"],
            "columns": ", ".join(self.columns),
        }
        groups = self.groups().items()
        rows = [(name, f"{mask.sum():,}", f"{mask.mean():.1%}") for name, mask in groups]
        heads = ("group", "neurons", "share")
        return card(f"Neuron table, {self.size:,} neurons", facts, rows=[heads, *rows])

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, neurons per layer)."""
        layers, neurons = next(iter(self.columns.values())).shape
        return layers, neurons

    @property
    def size(self) -> int:
        """How many neurons there are."""
        return math.prod(self.shape)

    def to_polars(self) -> pl.DataFrame:
        """The table as a polars data frame, a row per neuron sorted by layer, then neuron."""
        import polars as pl

        return pl.DataFrame(self._rows(), schema_overrides={"group": pl.String})

    def to_pandas(self) -> pd.DataFrame:
        """The table as a pandas data frame.

        Raises:
            DialdownError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise DialdownError(
                "A pandas data frame needs pandas, which is not installed: run `pip install "
                "pandas`, or use to_polars()."
            ) from error
        return pd.DataFrame(self._rows())

    def _rows(self) -> dict[str, Any]:
        layer, neuron = np.indices(self.shape, dtype=np.int32)
        rows: dict[str, Any] = {"layer": layer.ravel(), "neuron": neuron.ravel()}
        rows |= {name: grid.ravel() for name, grid in self.columns.items() if name != "judged"}
        rows["group"] = self.group_names()
        if "judged" in self.columns:
            rows["judged"] = self.columns["judged"].ravel()
        return rows

    @property
    def compared(self) -> bool:
        """Whether the table has a tuned model's columns."""
        return "projection_change" in self.columns

    @property
    def protocol(self) -> Protocol:
        protocol: Protocol = self.record["protocol"]
        return protocol

    def grid(self, column: str) -> NDArray[np.float64]:
        """A column as a (layers, neurons) float64 array.

        Raises:
            DialdownError: there is no such column.
        """
        if column not in self.columns:
            raise DialdownError(
                f"The neuron table has no column {column!r}: {nearest(column, [*self.columns])} "
                "Columns of the tuned model need a table from dd.compare, `judged` one with "
                "`with_judged`."
            )
        return np.asarray(self.columns[column], dtype=np.float64)

    def groups(self, *, changed: bool | None = None) -> dict[str, Mask]:
        """The four groups as (layers, neurons) masks (tables 4 and 5).

        Args:
            changed: keep only neurons with Delta_i < 0 (the default where a tuned model was
                compared); False is the tuning-free variant. An exact zero belongs to no group.

        Raises:
            DialdownError: Delta is asked for and no tuned model was compared.
        """
        cosine, mean = self.grid("cosine"), self.grid("mean_base")
        changed = self.compared if changed is None else changed
        kept = self.grid("projection_change") < 0 if changed else np.ones(self.shape, dtype=bool)
        return {
            "TP": kept & (cosine > 0) & (mean > 0),
            "TN": kept & (cosine > 0) & (mean < 0),
            "AP": kept & (cosine < 0) & (mean > 0),
            "AN": kept & (cosine < 0) & (mean < 0),
        }

    def group_names(self) -> list[str | None]:
        """The name of each neuron's group, in the order of rows; None where it has none."""
        names = np.full(self.shape, None, dtype=object)
        for name, mask in self.groups().items():
            names[mask] = name
        return names.ravel().tolist()

    def select(self, which: str) -> Mask:
        """Neurons by name: `TP`, `TP+AN`, `TP+AN+TN`, ... , `four_groups`, `increasing` (Delta >
        0), `toxic_256`, or `judged`.

        Raises:
            DialdownError: an unknown name, or one that needs a tuned model or a judge (see
                `with_judged`).
        """
        if which == "increasing":
            return self.grid("projection_change") > 0
        if which == "judged":
            return self.grid("judged") > 0
        if which.startswith("toxic_") and which.removeprefix("toxic_").isdigit():
            return self.most_aligned(int(which.removeprefix("toxic_")))
        groups = self.groups()
        names = GROUPS if which == "four_groups" else which.split("+")
        for name in names:
            if name not in groups:
                raise DialdownError(
                    f"Unknown group {name!r} in {which!r}: "
                    f"{nearest(name, [*GROUPS, 'four_groups', 'increasing', 'toxic_256'])}"
                )
        return np.asarray(np.logical_or.reduce([groups[name] for name in names]))

    def most_aligned(self, count: int) -> Mask:
        """The `count` neurons of highest cosine over all layers: the "toxic neurons" of section 4.

        Raises:
            DialdownError: there are fewer neurons than that.
        """
        if not 0 < count <= self.size:
            raise DialdownError(
                f"{count} most aligned neurons were asked for and the model has {self.size}: pass "
                "a number between."
            )
        mask = np.zeros(self.size, dtype=bool)
        mask[np.argsort(-self.grid("cosine").ravel(), kind="stable")[:count]] = True
        return mask.reshape(self.shape)

    def with_judged(self, mask: Mask) -> NeuronTable:
        """The table with a column `judged`: neurons whose logit-lens tokens a judge called toxic
        (see `logit_lens.judged_toxic`).
        """
        return replace(self, columns={**self.columns, "judged": mask})

    def to_parquet(self, path: str | Path) -> None:
        """Write the table as Parquet, with the record in its metadata."""
        header = json.dumps({"schema": SCHEMA, "shape": self.shape, **self.record})
        frame = self.to_polars()
        write_atomic(
            Path(path), lambda partial: frame.write_parquet(partial, metadata={"dialdown": header})
        )

    @classmethod
    def from_parquet(cls, path: str | Path) -> NeuronTable:
        """Read what `to_parquet` wrote.

        Raises:
            DialdownError: the file is missing, damaged or no neuron table.
        """
        import polars as pl
        from polars.exceptions import PolarsError

        try:
            header = pl.read_parquet_metadata(path).get("dialdown")
            frame = pl.read_parquet(path, glob=False)
        except FileNotFoundError as error:
            raise DialdownError(
                f"{path} does not exist: pass a neuron table written by to_parquet."
            ) from error
        except (PolarsError, OSError) as error:
            raise DialdownError(
                f"{path} is damaged or no Parquet file ({error}): write it again."
            ) from error
        if header is None:
            raise DialdownError(
                f"{path} is Parquet but no dialdown neuron table: pass one written by to_parquet."
            )
        record = json.loads(header)
        if (schema := record.pop("schema", None)) != SCHEMA:
            raise DialdownError(
                f"{path} is a neuron table of schema {schema}, not {SCHEMA}: write it again."
            )
        shape = record.pop("shape")
        columns = frame.drop("layer", "neuron", "group")
        return cls({column.name: column.to_numpy().reshape(shape) for column in columns}, record)

    save = to_parquet
    load = from_parquet


def neuron_table(lm: LM, direction: Direction, base: NeuronMeans) -> NeuronTable:
    """The table without a tuned model: enough for editing (METHOD §3, tuning-free groups).

    The protocol is that of the means; `strict` includes the weight of a norm after the MLP in what
    a neuron writes, and what the layer's output is multiplied by in its projection.

    Raises:
        DialdownError: the means or the direction belong to a model of another shape, the means to
            one of another name, or what the MLPs of `lm` write is not what METHOD §1 has.
    """
    base.check_model(lm)
    return _untuned(lm, direction, base)


def _untuned(lm: LM, direction: Direction, base: NeuronMeans) -> NeuronTable:
    from ..models.written import check_written

    collect = "collect them with dd.mean_activations on this model"
    check_neurons(lm, base.means.shape, "The means have", collect)
    check_width(lm, direction.vector.size, "The direction has", "find it on this model")
    check_written(lm)
    dots, norms = _dots(lm, direction, base.protocol)
    # The authors' code takes value vectors from the weights as they are.
    strict = base.protocol == "strict"
    multipliers = [layer.multiplier if strict else 1.0 for layer in lm.view.layers]
    columns = {
        # A value vector of zeros (a pruned neuron) has no direction; cosine 0 puts it in no group.
        "cosine": _ratio(dots, norms),
        "mean_base": base.means,
        "projection_base": base.means * dots * np.array(multipliers)[:, None],
    }
    record = {
        "protocol": base.protocol,
        "direction": {"name": direction.name, "site": direction.site, **direction.record},
        "base": lm.describe(),
        "count_base": base.count,
    }
    return NeuronTable(columns, record)


def compare(
    lm: LM, tuned: LM, direction: Direction, base: NeuronMeans, after: NeuronMeans
) -> NeuronTable:
    """The full table: what tuning changed in every neuron (METHOD §3). The column
    `projection_change` is equation 2: the mean activation times the projection of the value vector
    on W of length 1, of the tuned model minus of the base.

    Args:
        lm: the base model.
        tuned: the model after preference tuning.
        direction: the concept direction W.
        base: mean activations of the base model.
        after: mean activations of the tuned model, same prompts and protocol.

    Raises:
        DialdownError: see `neuron_table`; or the models differ in shape or tokenizer, or the means
            in shape, protocol, prompts or lengths.
    """
    from ..models.lm import check_pair

    check_pair(lm, tuned)
    base.check_comparable(after)
    # A tuned model's name is where it lies, which a finished run may not.
    untuned, now = neuron_table(lm, direction, base), _untuned(tuned, direction, after)
    projections = untuned.columns["projection_base"], now.columns["projection_base"]
    columns = {
        "cosine": untuned.columns["cosine"],
        "mean_base": base.means,
        "mean_tuned": after.means,
        "projection_base": projections[0],
        "projection_tuned": projections[1],
        "projection_change": projections[1] - projections[0],
        "value_cosine": _value_cosines(lm, tuned, base.protocol),
    }
    further = {"tuned": tuned.describe(), "count_tuned": after.count}
    return NeuronTable(columns, {**untuned.record, **further})


def _dots(
    lm: LM, direction: Direction, protocol: Protocol
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """v_i . W/|W| and |v_i| for every neuron, (layers, neurons) float64 each."""
    dots, norms = [], []
    for layer in lm.view.layers:
        vectors = layer.value_vectors(protocol).cpu().double()
        dots.append((vectors @ vectors.new_tensor(direction.unit)).numpy())
        norms.append(vectors.norm(dim=1).numpy())
    return np.stack(dots), np.stack(norms)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 where the whole is."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _value_cosines(lm: LM, tuned: LM, protocol: Protocol) -> NDArray[np.float64]:
    rows = []
    for layers in zip(lm.view.layers, tuned.view.layers, strict=True):
        a, b = (layer.value_vectors(protocol).cpu().double() for layer in layers)
        rows.append(_ratio((a * b).sum(1).numpy(), (a.norm(dim=1) * b.norm(dim=1)).numpy()))
    return np.stack(rows)
