"""The paper's tables for the model at hand, one function each, as tidy frames (METHOD §9).

A function's name starts with the number its table has in the paper; `TITLES` says what each shows.
Published figures stand in columns of their own: null for a model the paper did not study, and
beside the `paper` protocol only, which all of them follow. `rows` are those of results.json (see
`evaluation.Row.to_json`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..errors import DialdownError
from ..evaluation.evaluator import METRICS
from ..interventions.paper import Ordering
from ..models.lm import LM
from ..neurons import statistics
from ..neurons.activations import NeuronMeans
from ..neurons.directions import NON_TOXIC_WORDS, TOXIC_WORDS, Direction
from ..neurons.table import Mask, NeuronTable
from ..study import published

Judge = Callable[[Sequence[str]], Sequence[bool | None]]
"""Says of each token whether it is toxic; None where it cannot say."""
Rows = Sequence[Mapping[str, Any]]
Cells = Sequence[tuple[Any, ...]]
Directions = Sequence[Direction]

TITLES = {
    "table-1-directions": "Tokens that each concept direction, and its opposite, make most likely",
    "table-2-interventions": "Toxicity, log-perplexity and F1 under each intervention",
    "table-3-toxic-neurons": (
        "How much of DPO's toxicity reduction comes from patching the toxic neurons"
    ),
    "table-4-group-roles": (
        "The four neuron groups: signs, and what each contributes to the reduction"
    ),
    "table-5-group-shares": (
        "How the neurons divide into the four groups, with and without the condition on the change"
    ),
    "table-6-value-vectors": (
        "Tokens of the most toxic-aligned and, sign-reversed, the most anti-toxic value vectors"
    ),
    "table-7-seed-words": "Words of the token contrast",
    "table-8-mlp": "The model's MLP layers",
    "table-9-dpo": "Hyper-parameters of DPO",
    "table-10-kl-weight": "Weight of DPO's KL term",
    "table-11-probe": "Validation accuracy of the probe, and the strength of steering along it",
    "table-12-steering": "Steering along the probe at different strengths",
    "table-13-negative-means": "Share of neurons with a negative mean activation",
    "table-14-toxic-vectors": "Tokens of the value vectors most aligned with toxicity",
    "table-15-antitoxic-vectors": (
        "Tokens of the value vectors most opposed to toxicity, with reversed sign"
    ),
    "table-16-svd-directions": "Tokens of the directions of the toxic subspace",
    "table-17-correlations": (
        "Correlation of the activation shift with the cosine and with the activation before tuning"
    ),
    "table-18-reducing-share": "Share of all neurons whose projection on the direction shrinks",
    "table-19-more-interventions": (
        "Further interventions: increasing neurons, and other orders of choosing neurons"
    ),
    "section-5-1-shifts": "How far value vectors and mean activations move",
    "figure-1-opposing-effects": (
        "Projection change of the decreasing and the increasing neurons, layer by layer"
    ),
    "appendix-g-sign-conflicts": (
        "Share of neurons on which the directions of the toxic subspace disagree"
    ),
}
"""File stem to caption; the stem with underscores is the name of the function."""

_TEXT, _NUMBER, _COUNT, _YES = pl.String(), pl.Float64(), pl.Int64(), pl.Boolean()
_PUBLISHED = ("toxicity", "log_ppl", "f1")


def judged_toxic(
    lm: LM, table: NeuronTable, judge: Judge, *, count: int = 256, k: int = 10
) -> Mask:
    """Of the most aligned neurons, those with a toxic token among their top logit-lens tokens
    (METHOD §3).

    Args:
        lm: the base model of the table.
        table: its neurons.
        judge: says which tokens are toxic; a token it cannot judge counts as not toxic.
        count: how many of the most aligned neurons are looked at.
        k: how many tokens of each.

    Returns:
        A (layers, neurons) mask, part of `table.most_aligned(count)`.

    Raises:
        DialdownError: more neurons than there are, a table of another model, or a judge that skips
            tokens.
    """
    found = _value_lens(lm, table, 1, count, k, judge).filter(pl.col("toxic"))
    mask = np.zeros(table.shape, dtype=bool)
    mask[found["layer"].to_numpy(), found["neuron"].to_numpy()] = True
    return mask


def table_1_directions(
    lm: LM, directions: Directions, *, k: int = 10, judge: Judge | None = None
) -> pl.DataFrame:
    """Table 1: the `k` top tokens of W and of -W of each direction; `protocol` is null for one that
    depends on none.
    """
    return _direction_lens(lm, directions, (1, -1), k, judge)


def table_2_interventions(rows: Rows, *, model: str) -> pl.DataFrame:
    """Table 2: every intervention and control under both protocols, all metrics with 95 %
    intervals.

    `published_toxicity`, `published_log_ppl` and `published_f1` stand beside the row of that
    strength (`published.row`).
    """
    return _interventions(rows, model)


def table_3_toxic_neurons(rows: Rows, *, model: str) -> pl.DataFrame:
    """Table 3: (toxicity untouched - patched) / (untouched - DPO), for the judged and the most
    aligned neurons.

    `share` is null where DPO did not reduce toxicity or was not measured.
    """
    measured = {(row["intervention"], row["protocol"]): row for row in rows if row.get("toxicity")}
    found = []
    for (name, protocol), row in measured.items():
        if name == "patch_toxic_neurons" or name.removeprefix("patch_").isdigit():
            ends = [measured.get((one, protocol)) for one in ("none", "dpo")]
            base, dpo = (one["toxicity"]["mean"] if one else float("nan") for one in ends)
            share = (base - row["toxicity"]["mean"]) / (base - dpo) if base > dpo else None
            column = {"patch_toxic_neurons": "judged", "patch_256": "top"}.get(name)
            theirs = (_paper(protocol, model, "toxic_neurons") or {}).get(column, {})
            found.append(
                (protocol, name, row["neurons"], share, theirs.get("neurons"), theirs.get("share"))
            )
    schema = {"protocol": _TEXT, "intervention": _TEXT, "neurons": _COUNT, "share": _NUMBER}
    return _frame(found, **schema, published_neurons=_COUNT, published_share=_NUMBER)


def table_4_group_roles(table: NeuronTable) -> pl.DataFrame:
    """Table 4: the signs that make a group, of c_i and of the base mean, and its share of the sum
    of negative Delta.
    """
    groups = (
        statistics.group_shares(table)
        .filter(~pl.col("tuning_free"))
        .select("group", "reduction_share")
    )
    sign = {"T": "+", "A": "-", "P": "+", "N": "-"}
    rows = [
        (table.protocol, name, sign[name[0]], sign[name[1]], share)
        for name, share in groups.iter_rows()
    ]
    return _frame(
        rows, protocol=_TEXT, group=_TEXT, cosine=_TEXT, mean_base=_TEXT, reduction_share=_NUMBER
    )


def table_5_group_shares(table: NeuronTable) -> pl.DataFrame:
    """Table 5: count and share of each group among the neurons of all four, and the `sum` of
    counts, in both variants.
    """
    groups = statistics.group_shares(table)
    theirs = _paper(table.protocol, _model(table), "groups") or {}
    rows = []
    for tuning_free in (False, True):
        ours = groups.filter(pl.col("tuning_free") == tuning_free)
        # The published groups are those with the condition on Delta.
        known = {} if tuning_free else theirs
        rows += [
            (table.protocol, tuning_free, name, count, share, known.get(name), None)
            for name, count, share in ours.select("group", "count", "share").iter_rows()
        ]
        rows.append(
            (
                table.protocol,
                tuning_free,
                "sum",
                ours["count"].sum(),
                None,
                None,
                known.get("count"),
            )
        )
    schema = {
        "protocol": _TEXT,
        "tuning_free": _YES,
        "group": _TEXT,
        "count": _COUNT,
        "share": _NUMBER,
    }
    return _frame(rows, **schema, published=_NUMBER, published_count=_COUNT)


def table_6_value_vectors(
    lm: LM, table: NeuronTable, *, neurons: int = 5, k: int = 10, judge: Judge | None = None
) -> pl.DataFrame:
    """Table 6: the first `neurons` of table 14 (sign 1: tokens of v), then of table 15 (sign -1:
    tokens of -v).
    """
    return pl.concat([_value_lens(lm, table, sign, neurons, k, judge) for sign in (1, -1)])


def table_7_seed_words(
    positive: Sequence[str] = TOXIC_WORDS, negative: Sequence[str] = NON_TOXIC_WORDS
) -> pl.DataFrame:
    """Table 7: the words on either side of the token contrast, each beside the published word of
    its place.
    """
    theirs = published.seed_words()
    rows = [
        (side, place + 1, *words)
        for side, ours in (("toxic", positive), ("non_toxic", negative))
        for place, words in enumerate(zip_longest(ours, theirs[side]))
    ]
    return _frame(rows, side=_TEXT, place=_COUNT, word=_TEXT, published=_TEXT)


def table_8_mlp(lm: LM) -> pl.DataFrame:
    """Table 8: one row: `layers`, `d_model`, `d_mlp`, the activation function by transformers'
    name, `gated`.
    """
    config = lm.model.config.get_text_config()
    names = ("hidden_activation", "hidden_act", "activation_function", "activation")
    mlp = lm.model.get_submodule(lm.view.layers[0].path.rpartition(".")[0])
    ours = (
        lm.view.n_layers,
        lm.view.d_model,
        lm.view.n_neurons,
        next((found for name in names if (found := getattr(config, name, None))), None),
        any("gate" in name for name, _ in mlp.named_children()),
    )
    types = {
        "layers": _COUNT,
        "d_model": _COUNT,
        "d_mlp": _COUNT,
        "activation": _TEXT,
        "gated": _YES,
    }
    theirs = published.figure(lm.name, "mlp") or {}
    beside = {f"published_{name}": kind for name, kind in types.items()}
    return _frame([(lm.name, *ours, *map(theirs.get, types))], model=_TEXT, **types, **beside)


def table_9_dpo(settings: Mapping[str, Any]) -> pl.DataFrame:
    """Table 9: the fields of `DPOSettings` as run beside the published ones, as text; the KL weight
    is in table 10.

    `note` says what a published number means in the authors' program, where the table alone would
    mislead.
    """
    theirs, notes = published.dpo(), published.dpo_notes()
    names = [name for name in dict.fromkeys([*settings, *theirs]) if name != "kl_weight"]
    rows = [
        (name, _as_text(settings.get(name)), _as_text(theirs.get(name)), notes.get(name))
        for name in names
    ]
    return _frame(rows, setting=_TEXT, value=_TEXT, published=_TEXT, note=_TEXT)


def table_10_kl_weight(settings: Mapping[str, Any], *, model: str) -> pl.DataFrame:
    """Table 10: gamma as run, from the fields of `DPOSettings`."""
    row = (model, settings.get("kl_weight"), published.figure(model, "kl_weight"))
    return _frame([row], model=_TEXT, kl_weight=_NUMBER, published=_NUMBER)


def table_11_probe(facts: Mapping[str, Mapping[str, Any]], *, model: str) -> pl.DataFrame:
    """Table 11: `accuracy` and `auc` of each protocol's probe on held-out texts, and the steering
    strength `alpha`.

    Args:
        facts: protocol to any of these three.
        model: for the published figures; a published alpha holds for the paper's own W only.
    """
    names = ("accuracy", "auc", "alpha")
    rows = [
        (
            protocol,
            *(fact.get(name) for name in names),
            _paper(protocol, model, "probe_accuracy"),
            _paper(protocol, model, "steering_alpha"),
        )
        for protocol, fact in facts.items()
    ]
    numbers = dict.fromkeys((*names, "published_accuracy", "published_alpha"), _NUMBER)
    return _frame(rows, protocol=_TEXT, **numbers)


def table_12_steering(rows: Rows, *, model: str) -> pl.DataFrame:
    """Table 12: every row of steering along the probe, by alpha.

    Published figures stand beside an equal alpha; a published alpha that was not run has a row of
    its own, whose `intervention` is null.
    """
    ours = [
        row
        for row in rows
        if row["intervention"].startswith("steer_probe") and row["control_of"] is None
    ]
    columns = [f"published_{name}" for name in _PUBLISHED]
    stated = (
        published.figure(model, "steering")
        if any(row["protocol"] == "paper" for row in ours)
        else None
    )
    theirs = _frame(
        [("paper", one["alpha"], *(one[name] for name in _PUBLISHED)) for one in stated or ()],
        **{"protocol": _TEXT, "alpha": _NUMBER, **dict.fromkeys(columns, _NUMBER)},
    )
    frame = (
        _interventions(ours, model)
        .drop(columns)
        .join(theirs, on=["protocol", "alpha"], how="full", coalesce=True)
    )
    # `strict` first, as everywhere.
    return frame.sort("protocol", "alpha", descending=[True, False])


def table_13_negative_means(table: NeuronTable) -> pl.DataFrame:
    """Table 13: `negative_share` of the `base` and the `tuned` model; the published one is of the
    base model.
    """
    theirs = {"base": _paper(table.protocol, _model(table), "negative_share")}
    rows = [
        (table.protocol, one, share, theirs.get(one))
        for one, share in statistics.negative_shares(table).items()
    ]
    return _frame(rows, protocol=_TEXT, model=_TEXT, negative_share=_NUMBER, published=_NUMBER)


def table_14_toxic_vectors(
    lm: LM, table: NeuronTable, *, neurons: int = 10, k: int = 10, judge: Judge | None = None
) -> pl.DataFrame:
    """Table 14: the `k` top tokens of the value vectors v of highest cosine; the protocol is the
    table's.
    """
    return _value_lens(lm, table, 1, neurons, k, judge)


def table_15_antitoxic_vectors(
    lm: LM, table: NeuronTable, *, neurons: int = 10, k: int = 10, judge: Judge | None = None
) -> pl.DataFrame:
    """Table 15: the `k` top tokens of -v, for the value vectors v of lowest cosine."""
    return _value_lens(lm, table, -1, neurons, k, judge)


def table_16_svd_directions(
    lm: LM, directions: Directions, *, k: int = 10, judge: Judge | None = None
) -> pl.DataFrame:
    """Table 16: the `k` top tokens of each direction of `statistics.svd_subspace`."""
    return _direction_lens(lm, directions, (1,), k, judge)


def table_17_correlations(table: NeuronTable) -> pl.DataFrame:
    """Table 17: Pearson's `r`, two-sided `p` and `n`, one row per pair; `published_p` is text, as
    printed.
    """
    theirs = _paper(table.protocol, _model(table), "correlations") or {}
    rows = [
        (
            table.protocol,
            pair,
            one.r,
            one.p,
            one.n,
            *(theirs.get(pair, {}).get(name) for name in ("r", "p")),
        )
        for pair, one in statistics.correlations(table).items()
    ]
    schema = {"protocol": _TEXT, "pair": _TEXT, "r": _NUMBER, "p": _NUMBER, "n": _COUNT}
    return _frame(rows, **schema, published_r=_NUMBER, published_p=_TEXT)


def table_18_reducing_share(table: NeuronTable) -> pl.DataFrame:
    """Table 18: the share of all neurons with Delta < 0."""
    theirs = _paper(table.protocol, _model(table), "reducing_share")
    row = (table.protocol, table.arrow.num_rows, statistics.reducing_share(table), theirs)
    return _frame([row], protocol=_TEXT, neurons=_COUNT, reducing_share=_NUMBER, published=_NUMBER)


def table_19_more_interventions(rows: Rows, *, model: str) -> pl.DataFrame:
    """Table 19: patching the increasing neurons, and edits along the probe of other fractions and
    orders.

    Their names say so: `edit_probe_set_a0.4_b0.05`, `edit_probe_activation_set`,
    `edit_probe_alpha_scale@0.4`.
    """
    orderings = {*get_args(Ordering)}
    names = [row["control_of"] or row["intervention"] for row in rows]
    further = [
        name == "patch_all_increasing"
        or name.startswith(("edit_probe_alpha_", "edit_probe_set_a"))
        or bool(orderings & {*name.split("_")})
        for name in names
    ]
    return _interventions([row for row, wanted in zip(rows, further, strict=True) if wanted], model)


def section_5_1_shifts(table: NeuronTable) -> pl.DataFrame:
    """Section 5.1: `statistics.shifts` by layer; published are the `percent` and mean cosine over
    all layers.
    """
    theirs = _paper(table.protocol, _model(table), "shifts") or {}
    overall = pl.when(pl.col("layer").is_null())
    columns = {
        "published_value_cosine": theirs.get("value_cosine"),
        "published_percent": theirs.get("percent"),
    }
    beside = [overall.then(pl.lit(value, _NUMBER)).alias(name) for name, value in columns.items()]
    return statistics.shifts(table).select(_protocol(table), pl.all(), *beside)


def figure_1_opposing_effects(table: NeuronTable) -> pl.DataFrame:
    """The numbers of figure 1: `statistics.opposing_effects` by layer and, where `layer` is null,
    over all.
    """
    return statistics.opposing_effects(table).select(_protocol(table), pl.all())


def appendix_g_sign_conflicts(
    lm: LM, tuned: LM, directions: Directions, base: NeuronMeans, after: NeuronMeans
) -> pl.DataFrame:
    """Appendix G: `statistics.sign_conflicts`, one row for cosines and one for projection
    changes.
    """
    found = statistics.sign_conflicts(lm, tuned, directions, base, after)
    theirs = _paper(base.protocol, lm.name, "sign_conflicts") or {}
    rows = [
        (base.protocol, name, getattr(found, name), theirs.get(name))
        for name in ("cosine", "projection_change")
    ]
    return _frame(rows, protocol=_TEXT, quantity=_TEXT, conflict_share=_NUMBER, published=_NUMBER)


def _interventions(rows: Rows, model: str) -> pl.DataFrame:
    facts: dict[str, pl.DataType] = dict.fromkeys(
        ("intervention", "protocol", "control_of", "kind"), _TEXT
    )
    facts |= {"alpha": _NUMBER, "beta": _NUMBER, "neurons": _COUNT}
    ends = {"": "mean", "_low": "low", "_high": "high", "_n": "n"}
    measured = {
        f"{metric}{end}": (metric, part) for metric in METRICS for end, part in ends.items()
    }
    cells = []
    for row in rows:
        stated = _published_row(model, row)
        ours = ((row.get(metric) or {}).get(part) for metric, part in measured.values())
        cells.append((*(row[name] for name in facts), *ours, *map(stated.get, _PUBLISHED)))
    types = {name: _COUNT if part == "n" else _NUMBER for name, (_, part) in measured.items()}
    return _frame(cells, **facts, **types, **{f"published_{name}": _NUMBER for name in _PUBLISHED})


def _published_row(model: str, row: Mapping[str, Any]) -> Mapping[str, float]:
    """What the paper has for a row, under the protocol that it follows; empty where it has
    nothing.
    """
    strength = {"alpha": row["alpha"], "beta": row["beta"]}
    return (
        published.row(model, row["intervention"], **strength)
        if row["protocol"] == "paper"
        else None
    ) or {}


def _value_lens(
    lm: LM, table: NeuronTable, sign: int, count: int, k: int, judge: Judge | None
) -> pl.DataFrame:
    """The tokens of sign * v for the `count` neurons of highest sign * cosine, in that order."""
    layers, neurons, vectors = statistics.aligned_value_vectors(lm, table, count, opposed=sign < 0)
    cosines = table.grid("cosine")[layers, neurons]
    places = [
        (table.protocol, sign, *place)
        for place in zip(layers.tolist(), neurons.tolist(), cosines.tolist(), strict=True)
    ]
    schema = {
        "protocol": _TEXT,
        "sign": _COUNT,
        "layer": _COUNT,
        "neuron": _COUNT,
        "cosine": _NUMBER,
    }
    return _lens(lm, sign * vectors, places, k, judge, schema)


def _direction_lens(
    lm: LM, directions: Directions, signs: Sequence[int], k: int, judge: Judge | None
) -> pl.DataFrame:
    signed = [(one, sign) for one in directions for sign in signs]
    places = [(one.record.get("protocol"), one.name, sign) for one, sign in signed]
    vectors = np.stack([sign * one.vector for one, sign in signed])
    return _lens(
        lm, vectors, places, k, judge, {"protocol": _TEXT, "direction": _TEXT, "sign": _COUNT}
    )


def _lens(
    lm: LM,
    vectors: NDArray[Any],
    places: Cells,
    k: int,
    judge: Judge | None,
    schema: Mapping[str, pl.DataType],
) -> pl.DataFrame:
    """One row per vector and token; `places` are the cells, of `schema`, that say which vector it
    is.
    """
    decoded = statistics.logit_lens_batch(lm, vectors, k=k)
    tokens = list(dict.fromkeys(token for line in decoded for token, _ in line))
    answers = judge(tokens) if judge else [None] * len(tokens)
    if len(answers) != len(tokens):
        raise DialdownError(
            f"The judge gave {len(answers)} answers for {len(tokens)} tokens: return one for each, "
            "None where it cannot say."
        )
    toxic = {
        token: None if one is None else bool(one)
        for token, one in zip(tokens, answers, strict=True)
    }
    rows = [
        (*place, rank + 1, token, logit, toxic[token])
        for place, line in zip(places, decoded, strict=True)
        for rank, (token, logit) in enumerate(line)
    ]
    return _frame(rows, **schema, rank=_COUNT, token=_TEXT, logit=_NUMBER, toxic=_YES)


def _frame(rows: Cells, **schema: pl.DataType) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=schema, orient="row")


def _protocol(table: NeuronTable) -> pl.Expr:
    return pl.lit(table.protocol).alias("protocol")


def _model(table: NeuronTable) -> str | None:
    found: str | None = table.record["base"].get("model")
    return found


def _paper(protocol: str, model: str | None, quantity: published.Quantity) -> Any:
    return published.figure(model, quantity) if protocol == "paper" else None


def _as_text(value: object) -> str | None:
    return None if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)
