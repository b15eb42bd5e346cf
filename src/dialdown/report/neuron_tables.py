"""The paper's tables of what tuning did to the neurons, each a frame (METHOD §3, §9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from ..neurons import statistics
from ..neurons.table import NeuronTable
from ..study import published

Frames = dict[str, pl.DataFrame]
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
    stated = under_paper(table.protocol, _model(table), "groups") or {}
    cells: list[tuple[Any, ...]] = []
    for tuning_free in (False, True):
        variant = groups.filter(pl.col("tuning_free") == tuning_free)
        # The published groups are those with the condition on Delta.
        known = {} if tuning_free else stated
        cells += [
            (table.protocol, tuning_free, name, count, share, known.get(name), None)
            for name, count, share in variant.select("group", "count", "share").iter_rows()
        ]
        total = variant["count"].sum()
        cells.append((table.protocol, tuning_free, "sum", total, None, None, known.get("count")))
    columns = (
        "protocol:text tuning_free:bool group:text count:int share published published_count:int"
    )
    return frame_of(cells, columns)


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


def table_8_mlp(facts: Mapping[str, Any], *, model: str) -> pl.DataFrame:
    """Table 8: one row, of `statistics.mlp_facts`."""
    names = ("layers:int", "d_model:int", "d_mlp:int", "activation:text", "gated:bool")
    stated = published.figure(model, "mlp") or {}
    keys = [name.partition(":")[0] for name in names]
    cells = (model, *map(facts.get, keys), *map(stated.get, keys))
    return frame_of(
        [cells], " ".join(["model:text", *names, *(f"published_{name}" for name in names)])
    )


def table_13_negative_means(table: NeuronTable) -> pl.DataFrame:
    """Table 13: `negative_share` of the `base` and the `tuned` model; the published one is of the
    base model.
    """
    stated = {"base": under_paper(table.protocol, _model(table), "negative_share")}
    cells = [
        (table.protocol, model, share, stated.get(model))
        for model, share in statistics.negative_shares(table).items()
    ]
    return frame_of(cells, "protocol:text model:text negative_share published")


def table_17_correlations(table: NeuronTable) -> pl.DataFrame:
    """Table 17: Pearson's `r`, two-sided `p` and `n`, one row per pair; `published_p` is text, as
    printed.
    """
    stated = under_paper(table.protocol, _model(table), "correlations") or {}
    cells = [
        (table.protocol, pair, *vars(found).values(), *map(stated.get(pair, {}).get, ("r", "p")))
        for pair, found in statistics.correlations(table).items()
    ]
    return frame_of(cells, "protocol:text pair:text r p n:int published_r published_p:text")


def table_18_reducing_share(table: NeuronTable) -> pl.DataFrame:
    """Table 18: the share of all neurons with Delta < 0."""
    stated = under_paper(table.protocol, _model(table), "reducing_share")
    cells = (table.protocol, table.arrow.num_rows, statistics.reducing_share(table), stated)
    return frame_of([cells], "protocol:text neurons:int reducing_share published")


def section_5_1_shifts(table: NeuronTable) -> pl.DataFrame:
    """Section 5.1: `statistics.shifts` by layer; published are the `percent` and mean cosine over
    all layers.
    """
    stated = under_paper(table.protocol, _model(table), "shifts") or {}
    overall = pl.when(pl.col("layer").is_null())
    beside = [
        overall.then(pl.lit(stated.get(name), pl.Float64)).alias(f"published_{name}")
        for name in ("value_cosine", "percent")
    ]
    return statistics.shifts(table).select(_protocol(table), pl.all(), *beside)


def figure_1_opposing_effects(table: NeuronTable) -> pl.DataFrame:
    """The numbers of figure 1: `statistics.opposing_effects` by layer and, where `layer` is null,
    over all.
    """
    return statistics.opposing_effects(table).select(_protocol(table), pl.all())


def appendix_g_sign_conflicts(
    shares: Mapping[str, Mapping[str, float]], *, model: str
) -> pl.DataFrame:
    """Appendix G: `statistics.sign_conflicts` of each protocol, one row for cosines and one for
    projection changes.
    """
    cells = [
        (protocol, name, share, (under_paper(protocol, model, "sign_conflicts") or {}).get(name))
        for protocol, conflicts in shares.items()
        for name, share in conflicts.items()
    ]
    return frame_of(cells, "protocol:text quantity:text conflict_share published")


def frame_of(cells: Sequence[tuple[Any, ...]], columns: str) -> pl.DataFrame:
    """Rows as a frame; `columns` are names, each with `:text`, `:int` or `:bool` where it holds no
    floats.
    """
    named = (column.partition(":") for column in columns.split())
    return pl.DataFrame(cells, {name: _TYPES[kind] for name, _, kind in named}, orient="row")


def _protocol(table: NeuronTable) -> pl.Expr:
    return pl.lit(table.protocol).alias("protocol")


def _model(table: NeuronTable) -> str | None:
    model: str | None = table.record["base"].get("model")
    return model


def under_paper(protocol: str, model: str | None, quantity: published.Quantity) -> Any:
    return published.figure(model, quantity) if protocol == "paper" else None
