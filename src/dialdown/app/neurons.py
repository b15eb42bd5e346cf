"""The neuron table as the app filters it, and what one neuron's card says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..errors import DialdownError
from ..neurons.table import GROUPS, NeuronTable
from ..report.chart_style import COLOURS, NO_GROUP, WIDTH, Chart, titled
from .words import chips, coloured, safe

if TYPE_CHECKING:
    from ..interventions.intervention import Intervention
    from ..models.lm import LM

SHOWN = 200
BINS = 40
ANY = "any"
# Columns of the table as they are called here, and in the neuron table; the change of the mean is
# computed.
COLUMNS = {
    "cosine": "cosine",
    "before": "mean_base",
    "after": "mean_tuned",
    "delta": "projection_change",
}
GROUPING = (
    "T writes along the direction, A against it; P had a mean activation above 0 before tuning, N "
    "below; only neurons that write less after it are in a group"
)
GROUPING_UNTUNED = (
    "T writes along the direction, A against it; P has a mean activation above 0, N below; without "
    "a tuned model every neuron is in a group, unless one of the two is exactly 0"
)
MEANING = {
    "group": GROUPING,
    "cosine": "cosine of the value vector with the direction",
    "before": "mean activation of the base model",
    "after": "mean activation of the tuned model",
    "shift": "after minus before",
    "delta": "change of the projection on the direction, Δ",
    "gain": "what the edit chosen in Play multiplies the activation by",
}


def neuron_frame(table: NeuronTable | None, edit: Intervention | None) -> pl.DataFrame:
    """A row per neuron with what is known of it; no rows where neither a table nor an edit is.

    Columns: `layer`, `neuron`, and as far as they are known `group`, `cosine`, `before`, `after`,
    `shift`, `delta` and `gain`.
    """
    shape = table.shape if table else edit.gain.shape if edit else (0, 0)
    layers, neurons = np.indices(shape)
    columns: dict[str, Any] = {"layer": layers.ravel(), "neuron": neurons.ravel()}
    if table:
        columns["group"] = [name or NO_GROUP for name in table.group_names()]
        known = {name: column for name, column in COLUMNS.items() if column in table.columns}
        columns |= {name: table.grid(column).ravel() for name, column in known.items()}
        if "after" in columns:
            columns["shift"] = columns["after"] - columns["before"]
    if edit is not None and edit.gain.size and edit.gain.shape == shape:
        columns["gain"] = edit.gain.ravel()
    return pl.DataFrame(columns)


def meanings_of(frame: pl.DataFrame) -> dict[str, str]:
    """What the columns of a `neuron_frame` mean, as far as they are explained."""
    # Without a tuned model groups have no condition on Δ (METHOD §3).
    meaning = MEANING if "delta" in frame.columns else {**MEANING, "group": GROUPING_UNTUNED}
    return {name: meaning[name] for name in frame.columns if name in meaning}


def legend(frame: pl.DataFrame) -> str:
    """What the columns of a list mean, in HTML; nothing where none is explained."""
    meanings = [f"<b>{name}</b> {safe(text)}" for name, text in meanings_of(frame).items()]
    return f"<p class='dd-legend'>{' · '.join(meanings)}</p>" if meanings else ""


def select(
    frame: pl.DataFrame,
    layer: int | None = None,
    group: str = ANY,
    sort: str = "cosine",
    smallest: bool = False,
) -> pl.DataFrame:
    """The first rows of one layer (None for all) and one group (`any` for all, `none` for neurons
    of no group), ordered by a column, with numbers of four digits.
    """
    if layer is not None:
        frame = frame.filter(pl.col("layer") == layer)
    if group != ANY and "group" in frame.columns:
        frame = frame.filter(pl.col("group") == group)
    if sort in frame.columns:
        frame = frame.sort(sort, descending=not smallest, maintain_order=True)
    return frame.head(SHOWN).with_columns(pl.col(pl.Float64).round_sig_figs(4))


def groups_of(frame: pl.DataFrame) -> list[str]:
    """What the group filter offers."""
    return [ANY, *GROUPS, NO_GROUP] if "group" in frame.columns else [ANY]


def writing(lm: LM, word: str) -> tuple[str, pl.DataFrame]:
    """The neurons that write a word more than chance would have one do (where there are none, the
    first of all): a sentence about the token looked for, and a frame of `layer`, `neuron`, `writes
    it when`, `score`, `rank` and the first `tokens`. A blank word is refused (DialdownError).
    """
    from ..neurons.logit_lens import word_tokens, writers

    ids = word_tokens(lm, word)
    pieces = [lm.tokenizer.decode([token]) for token in ids]
    written = " + ".join(map(repr, pieces))
    what = (
        f"The token {written}."
        if len(ids) == 1
        else f"This vocabulary has no token for {word.strip()!r} and writes {written}; these "
        f"neurons write the last piece, {pieces[-1]!r}."
    )
    candidates = 2 * lm.view.n_layers * lm.view.n_neurons
    chance = NormalDist().inv_cdf(1 - 1 / candidates)
    strongest = writers(lm, ids[-1], count=25)
    above = strongest.filter(pl.col("score") > chance)
    shown = "Shown is what lies" if len(above) else "Trust none of these: not one lies"
    sentence = (
        f"{what} The score says by how many standard deviations its logit lies above the other "
        f"tokens’; rank 1 is the token a neuron writes first. {shown} above {chance:.1f}, which "
        f"chance reaches among {candidates:,} neurons and signs."
    )
    strongest = above if len(above) else strongest
    tokens = [
        " ".join(token.strip() for token, _ in _lens(lm, layer, neuron, sign, 5))
        for layer, neuron, sign in strongest.select("layer", "neuron", "sign").iter_rows()
    ]
    return sentence, strongest.select(
        "layer",
        "neuron",
        pl.col("sign").replace_strict({1: "active", -1: "negative"}).alias("writes it when"),
        pl.col("score").round(2),
        "rank",
        tokens=pl.Series(tokens, dtype=pl.String),
    )


def _lens(lm: LM, layer: int, neuron: int, sign: int, k: int) -> list[tuple[str, float]]:
    from ..neurons.logit_lens import logit_lens

    vector = lm.view.layers[layer].value_vectors()[neuron]
    return logit_lens(lm, (sign * vector).cpu().numpy(), k=k)


def check_neuron(lm: LM, layer: int, neuron: int) -> None:
    """Refuse a neuron that the model does not have (DialdownError)."""
    if not (0 <= layer < lm.view.n_layers and 0 <= neuron < lm.view.n_neurons):
        raise DialdownError(
            f"{lm.name} has no neuron {neuron} in layer {layer}: layers go from 0 to "
            f"{lm.view.n_layers - 1} and neurons from 0 to {lm.view.n_neurons - 1}."
        )


def facts_of(frame: pl.DataFrame, layer: int, neuron: int) -> dict[str, Any]:
    """What the table knows of a neuron, by column."""
    known = frame.filter(layer=layer, neuron=neuron).drop("layer", "neuron")
    return known.row(0, named=True) if len(known) else {}


def card(lm: LM, frame: pl.DataFrame, layer: int, neuron: int) -> str:
    """One neuron as HTML: what it writes with either sign, and what the table knows of it."""
    meaning = meanings_of(frame)
    facts = "".join(
        f'<div title="{safe(meaning.get(name, name))}"><dt>{name}</dt><dd>{_fact(value)}</dd></div>'
        for name, value in facts_of(frame, layer, neuron).items()
    )
    plus, minus = (chips(_lens(lm, layer, neuron, sign, 12)) for sign in (1, -1))
    return (
        f'<div class="dd-card"><h2>Layer {layer}, neuron {neuron}</h2>'
        f"<h3>writes while its activation is above zero</h3>{plus}"
        f"<h3>and below zero</h3>{minus}"
        f"{f'<dl>{facts}</dl>' if facts else ''}</div>"
    )


def _fact(value: Any) -> str:
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else safe(str(value))


def histogram(values: NDArray[np.float32], marks: dict[str, float]) -> Chart:
    """How often a neuron has which activation, (n,) values of all tokens of the texts, n > 0;
    `marks` are labelled places on the axis, such as the means.
    """
    low, high = float(values.min()), float(values.max())
    counts, edges = np.histogram(values, BINS, (low, max(high, low + 1e-6)))
    bars = pl.DataFrame({"from": edges[:-1], "to": edges[1:], "tokens": counts})
    ends = [alt.Tooltip(f"{end}:Q", format=".3g") for end in ("from", "to")]
    chart: Any = (
        alt.Chart(bars.filter(pl.col("tokens") > 0))
        .mark_bar(color=COLOURS["sky"], stroke=COLOURS["ground"])
        .encode(
            x=alt.X("from:Q", title="activation", bin="binned"),
            x2="to",
            y=alt.Y("tokens:Q", title="tokens", scale=alt.Scale(type="symlog")),
            tooltip=[*ends, "tokens:Q"],
        )
    )
    if marks:
        places = pl.DataFrame({"mean": [*marks], "at": [*marks.values()]})
        colours = [COLOURS["ink"], COLOURS["vermillion"]]
        scale = alt.Scale(domain=["before", "after"], range=colours)
        tips = ["mean:N", alt.Tooltip("at:Q", format=".3g")]
        rules = alt.Chart(places).mark_rule(strokeWidth=2)
        chart += rules.encode(x="at:Q", color=alt.Color("mean:N", scale=scale), tooltip=tips)
    return titled(
        chart.properties(width=WIDTH, height=150),
        "Activations over all tokens of the texts",
        f"{values.size:,} tokens; lines: means while generating",
    )


@dataclass(frozen=True)
class Read:
    """A text as one neuron read it: its tokens and the activation at each."""

    tokens: Sequence[str]
    values: Sequence[float]

    @property
    def peak(self) -> float:
        """The largest absolute activation."""
        return max(map(abs, self.values), default=0.0)


def most_active(read: Sequence[Read]) -> str:
    """The texts in which a neuron is most active as HTML, each token coloured by its activation."""
    first = sorted(read, key=lambda text: -text.peak)[:8]
    most = first[0].peak if first else 0.0
    legend = "<p class='dd-legend'>Orange: its activation is above 0; blue: below.</p>"
    return legend + "".join(coloured(text.tokens, text.values, most) for text in first)
