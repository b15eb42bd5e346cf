"""The paper's tables of what tuning did to the neurons, each a frame (METHOD §3, §9), and how
published figures stand beside a run's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import polars as pl

from ..neurons import statistics
from ..neurons.table import NeuronTable
from ..study import published

Frames = dict[str, pl.DataFrame]
MODELS = tuple(published.NAMES)
_TYPES = {"text": pl.String, "int": pl.Int64, "bool": pl.Boolean, "": pl.Float64}


def neuron_tables(tables: Sequence[NeuronTable]) -> Frames:
    """The tables of compared neuron tables: 4, 5, 13, 17, 18, section 5.1, figure 1's numbers."""
    functions = (
        table_4_group_roles,
        table_5_group_shares,
        table_13_negative_means,
        table_17_correlations,
        table_18_reducing_share,
        section_5_1_shifts,
        figure_1_opposing_effects,
    )
    return {
        function.__name__.replace("_", "-"): pl.concat([function(table) for table in tables])
        for function in functions
        if tables
    }


def table_4_group_roles(table: NeuronTable) -> pl.DataFrame:
    """Table 4: the signs that make a group, of c_i and of the base mean, and its share of the sum
    of negative Delta.
    """
    groups = statistics.group_shares(table).filter(~pl.col("tuning_free"))
    signs = {"T": "+", "A": "-", "P": "+", "N": "-"}
    return groups.select(
        _protocol(table),
        "group",
        pl.col("group").str.slice(0, 1).replace(signs).alias("cosine"),
        pl.col("group").str.slice(1, 1).replace(signs).alias("mean_base"),
        "reduction_share",
    )


def table_5_group_shares(table: NeuronTable) -> pl.DataFrame:
    """Table 5: count and share of each group among the neurons of all four, and the `sum` of
    counts, in both variants.
    """
    groups = statistics.group_shares(table)
    cells: list[tuple[Any, ...]] = []
    for tuning_free in (False, True):
        variant = groups.filter(pl.col("tuning_free") == tuning_free)
        total = [("sum", variant["count"].sum(), None)]
        for name, count, share in [*variant.select("group", "count", "share").iter_rows(), *total]:
            # The published groups are those with the condition on Delta.
            protocol = "" if tuning_free else table.protocol
            read = partial(_group, "count" if name == "sum" else name)
            cells.append((table.protocol, tuning_free, name, count, share, *beside(protocol, read)))
    columns = "protocol:text tuning_free:bool group:text count:int share"
    return frame_of(cells, f"{columns} {stated_columns('share', 'count:int')}")


def _group(name: str, model: str) -> tuple[float | None, int | None]:
    figure = (published.figure(model, "groups") or {}).get(name)
    return (None, figure) if name == "count" else (figure, None)


def table_6_value_vectors(
    toxic: pl.DataFrame, antitoxic: pl.DataFrame, *, neurons: int = 5
) -> pl.DataFrame:
    """Table 6: of each protocol the first `neurons` of table 14 (tokens of v), then of table 15
    (tokens of -v).
    """
    both = pl.concat([toxic, antitoxic])
    first = both.filter(
        pl.struct("layer", "neuron").rle_id().rank("dense").over("protocol", "sign") <= neurons
    )
    return first.sort(
        pl.col("protocol").replace_strict({"strict": 0, "paper": 1}), maintain_order=True
    )


def table_8_mlp(facts: Mapping[str, Any]) -> pl.DataFrame:
    """Table 8: `neurons.subspace.mlp_facts`, a row each, as text."""
    cells = [
        (name, str(facts[name]), *(str(published.figure(model, "mlp")[name]) for model in MODELS))
        for name in ("layers", "d_model", "d_mlp", "activation", "gated")
    ]
    return frame_of(cells, f"fact:text value:text {stated_columns(':text')}")


def table_13_negative_means(table: NeuronTable) -> pl.DataFrame:
    """Table 13: `negative_share` of the `base` and the `tuned` model; the published one is of the
    base model.
    """
    cells = [
        (
            table.protocol,
            model,
            share,
            *beside(table.protocol if model == "base" else "", figure_of("negative_share")),
        )
        for model, share in statistics.negative_shares(table).items()
    ]
    return frame_of(cells, f"protocol:text model:text negative_share {stated_columns('')}")


def table_17_correlations(table: NeuronTable) -> pl.DataFrame:
    """Table 17: Pearson's `r`, two-sided `p` and `n`, one row per pair; a published `p` is text, as
    printed.
    """
    cells = [
        (
            table.protocol,
            pair,
            *correlation.values(),
            *beside(table.protocol, figure_of("correlations", pair, keys=("r", "p"))),
        )
        for pair, correlation in statistics.correlations(table).items()
    ]
    return frame_of(cells, f"protocol:text pair:text r p n:int {stated_columns('r', 'p:text')}")


def table_18_reducing_share(table: NeuronTable) -> pl.DataFrame:
    """Table 18: the share of all neurons with Delta < 0."""
    cells = (
        table.protocol,
        table.size,
        statistics.reducing_share(table),
        *beside(table.protocol, figure_of("reducing_share")),
    )
    return frame_of([cells], f"protocol:text neurons:int reducing_share {stated_columns('')}")


def section_5_1_shifts(table: NeuronTable) -> pl.DataFrame:
    """Section 5.1: `statistics.shifts` by layer; published are the mean cosine and the percent over
    all layers.
    """
    names = stated_columns("value_cosine", "percent").split()
    figures = beside(table.protocol, figure_of("shifts", keys=("value_cosine", "percent")))
    overall = pl.when(pl.col("layer").is_null())
    columns = [
        overall.then(pl.lit(figure, pl.Float64)).alias(name)
        for name, figure in zip(names, figures, strict=True)
    ]
    return statistics.shifts(table).select(_protocol(table), pl.all(), *columns)


def figure_1_opposing_effects(table: NeuronTable) -> pl.DataFrame:
    """The numbers of figure 1: `statistics.opposing_effects` by layer and, where `layer` is null,
    over all.
    """
    return statistics.opposing_effects(table).select(_protocol(table), pl.all())


def appendix_g_sign_conflicts(shares: Mapping[str, Mapping[str, float]]) -> pl.DataFrame:
    """Appendix G: `neurons.subspace.sign_conflicts` of each protocol, a row for cosines and one
    for projection changes.
    """
    cells = [
        (protocol, name, share, *beside(protocol, figure_of("sign_conflicts", name)))
        for protocol, conflicts in shares.items()
        for name, share in conflicts.items()
    ]
    return frame_of(cells, f"protocol:text quantity:text conflict_share {stated_columns('')}")


def frame_of(cells: Sequence[tuple[Any, ...]], columns: str) -> pl.DataFrame:
    """Rows as a frame; `columns` are names, each with `:text`, `:int` or `:bool` where it holds no
    floats.
    """
    named = (column.partition(":") for column in columns.split())
    return pl.DataFrame(cells, {name: _TYPES[kind] for name, _, kind in named}, orient="row")


def stated_columns(*kinds: str) -> str:
    """For `frame_of`: of each of the paper's models a column of each kind, `published_MODEL_KIND`;
    an empty kind is `published_MODEL`.
    """
    return " ".join(
        f"published_{model}_{kind}".replace("_:", ":").removesuffix("_")
        for model in MODELS
        for kind in kinds
    )


def beside(protocol: str, read: Callable[[str], Sequence[Any]]) -> list[Any]:
    """The cells of `stated_columns`: what `read` knows of each model, beside `paper` only, which
    all published figures follow.
    """
    return [cell if protocol == "paper" else None for model in MODELS for cell in read(model)]


def figure_of(
    quantity: published.Quantity, *path: str, keys: Sequence[str] = ()
) -> Callable[[str], Sequence[Any]]:
    """For `beside`: reads a figure of a model, or `keys` of one, at a path inside the quantity."""

    def read(model: str) -> Sequence[Any]:
        figure = published.figure(model, quantity)
        for key in path:
            figure = (figure or {}).get(key)
        return [(figure or {}).get(key) for key in keys] if keys else [figure]

    return read


def _protocol(table: NeuronTable) -> pl.Expr:
    return pl.lit(table.protocol).alias("protocol")
