"""The charts of interventions and of training: the trade-off, controls, value vectors, the log.

    save(tradeoff(points, "strict"), Path("figures/front-strict"))

Means stand with their 95 % intervals, and every chart names its protocol. See `neuron_charts` for
the paper's figures 1 to 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from textwrap import wrap
from typing import Any, Literal

import altair as alt
import polars as pl

from ..errors import DialdownError, nearest
from ..evaluation.bootstrap import Estimate
from ..models.lm import Protocol
from ..neurons.table import NeuronTable
from .chart_style import (
    COLOURS,
    DASHES,
    LINE_KEYS,
    WIDTH,
    Chart,
    channel,
    said,
    scales,
    symlog,
    titled,
    zero_line,
)
from .names import CONTROLS, FAMILIES, Look

Price = Literal["log_ppl", "kl"]
PRICES: dict[Price, str] = {
    "log_ppl": "change of log-perplexity (nats per token)",
    "kl": "KL from the untouched model (nats per token)",
}
# Differences of log-perplexity span three orders: linear below this, logarithmic above.
LINEAR = 0.01
# Steps of a training log that a figure shows at most.
STEPS = 1000


@dataclass(frozen=True)
class Point:
    """One intervention at one strength, in the trade-off.

    Attributes:
        family: a key of FAMILIES.
        name: the intervention's name, to be read.
        strength: what the family is dialled by (optimiser step, steering α, β, gain); points of one
            family are joined in its order, and a point without one stands alone.
        toxicity: mean score of the continuations.
        log_ppl: change of log-perplexity to the untouched model, paired, nats per token.
        kl: KL(base ‖ edited) on the reference text, nats per token.
    """

    family: str
    name: str
    strength: float | None
    toxicity: Estimate
    log_ppl: Estimate | None
    kl: Estimate | None

    def price(self, quantity: Price) -> Estimate | None:
        """The price asked for; None where it was not measured."""
        return self.log_ppl if quantity == "log_ppl" else self.kl


def pareto_optimal(points: Sequence[Point], quantity: Price) -> list[bool]:
    """For each point, that no other is at least as good in toxicity and in price and better in one,
    by their means.
    """
    places = [
        (price.mean, point.toxicity.mean)
        for point in points
        if (price := point.price(quantity)) is not None
    ]
    return [not any(x <= a and y <= b and (x, y) != (a, b) for x, y in places) for a, b in places]


def tradeoff(
    points: Sequence[Point],
    protocol: Protocol,
    *,
    everything: Sequence[Point] = (),
    concept: str = "toxicity",
) -> Chart:
    """Toxicity against log-perplexity and against KL (table 2 as a picture, METHOD §5, §6).

    The large mark of a line is its greatest strength; a ring marks what no other point beats in
    both quantities.

    Args:
        points: measured under one protocol.
        protocol: its name.
        everything: the points of all charts that share their axes.
        concept: what the scores are of.

    Raises:
        DialdownError: there are no points, or one is of an unknown family.
    """
    _check(points)
    both = [*points, *everything]
    panels = [
        _price_panel(points, price, both, concept)
        for price in PRICES
        if any(point.price(price) for point in points)
    ]
    heading = f"{concept.capitalize()} against its price · {protocol}"
    named = [f"{letter} {name}".replace(" ", "\u00a0") for name, letter in _letters(points).items()]
    lines = wrap("\u00a0· ".join(named), width=130)
    return titled(alt.hconcat(*panels), heading, _counted(points), *lines, columns=5)


def _check(points: Sequence[Point]) -> None:
    if not any(point.log_ppl or point.kl for point in points):
        raise DialdownError(
            "The trade-off was given no points: pass one Point for each intervention and strength."
        )
    for point in points:
        if point.family not in FAMILIES:
            raise DialdownError(
                f"The point {point.name!r} is of the unknown family {point.family!r}: "
                f"{nearest(point.family, FAMILIES)}"
            )


def _counted(points: Sequence[Point]) -> str:
    """What the intervals are over: prompts for toxicity, blocks of text for the prices."""
    prompts = {point.toxicity.n for point in points}
    blocks = {point.log_ppl.n for point in points if point.log_ppl and point.log_ppl.n}
    return (
        f"{_span(prompts)} prompts, {_span(blocks)} blocks of text; means with 95 % intervals; "
        "ring: no point is better in both"
    )


def _span(counts: set[int]) -> str:
    ends = sorted({min(counts, default=0), max(counts, default=0)})
    return "–".join(f"{end:,}" for end in ends)


def _price_panel(
    points: Sequence[Point], price: Price, everything: Sequence[Point], concept: str
) -> Chart:
    ends = [end for point in everything for end in _ends(point.price(price))]
    top = 1.05 * max(0.05, *(point.toxicity.high for point in everything))
    frame = _points_frame(points, price)
    looks = scales([look for look in FAMILIES.values() if look.label in set(frame["family"])])
    x = channel(alt.X, **symlog(ends, LINEAR, PRICES[price]))
    y = channel(alt.Y, scale=alt.Scale(domain=[0, top]), title=f"{concept}, mean score")
    base = alt.Chart(frame).encode(
        x=x("price:Q"), y=y("score:Q"), stroke=alt.Stroke("family:N", scale=looks["colour"])
    )
    joined = base.transform_filter("isValid(datum.dial)").mark_line(strokeWidth=1.2)
    thin = base.mark_rule(strokeWidth=0.9, opacity=0.5, clip=True)
    best = base.transform_filter("datum.best").mark_point(size=320, strokeWidth=1.1, opacity=1)
    facts = ("strength", "toxicity", "change of log-perplexity", "KL")
    return alt.layer(
        joined.encode(order="dial:Q", strokeDash=alt.StrokeDash("dash:N", scale=None)),
        zero_line("x"),
        thin.encode(x=x("price_low:Q"), x2="price_high:Q"),
        thin.encode(y=y("score_low:Q"), y2="score_high:Q"),
        best.encode(stroke=alt.value(COLOURS["ink"])),
        base.mark_point(opacity=1, strokeWidth=1.4).encode(
            fill=alt.Fill("family:N", scale=looks["fill"]),
            shape=alt.Shape("family:N", scale=looks["shape"]),
            size=alt.condition("datum.greatest", alt.value(170), alt.value(60)),
            tooltip=["family:N", "name:N", *(f"{fact}:N" for fact in facts)],
        ),
        base.mark_text(dx=9, dy=-8, fontSize=10).encode(
            text="letter:N", stroke=alt.value(None), fill=alt.value(COLOURS["ink"])
        ),
    ).properties(width=WIDTH - 20, height=300)


def _letters(points: Sequence[Point]) -> dict[str, str]:
    """For interventions that share a mark: name to the letter beside the mark."""
    names = [point.name for point in points if point.family in ("patch", "other")]
    return dict(zip(names, ascii_lowercase, strict=False)) if len(names) > 1 else {}


def _ends(estimate: Estimate | None) -> tuple[float, ...]:
    return () if estimate is None else (estimate.low, estimate.high)


def _points_frame(points: Sequence[Point], price: Price) -> pl.DataFrame:
    last = {
        family: max(dials)
        for family in FAMILIES
        if len(dials := [p.strength for p in points if p.family == family and p.strength]) > 1
    }
    letters, rows = _letters(points), []
    points = [point for point in points if point.price(price)]
    for point, best in zip(points, pareto_optimal(points, price), strict=True):
        paid = point.price(price)
        if paid is not None:
            rows.append({
                "family": FAMILIES[point.family].label,
                "letter": letters.get(point.name, ""),
                "name": point.name,
                "dash": DASHES[FAMILIES[point.family].dash],
                "dial": point.strength,
                "strength": "" if point.strength is None else f"{point.strength:g}",
                **_placed("price", paid),
                **_placed("score", point.toxicity),
                "toxicity": said(point.toxicity),
                "change of log-perplexity": said(point.log_ppl) if point.log_ppl else "",
                "KL": said(point.kl) if point.kl else "",
                "best": best,
                "greatest": point.strength is not None
                and point.strength == last.get(point.family),
            })  # fmt: skip
    return pl.DataFrame(rows)


def _placed(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def controls(
    rows: Mapping[str, Mapping[str, Estimate]], protocol: Protocol, quantity: str
) -> Chart:
    """Interventions and their controls, each with its 95 % interval (METHOD §5).

    Args:
        rows: label to estimates by control; the intervention itself under the empty name.
        protocol: under which all of it was measured.
        quantity: what the axis shows, with its unit.
    """
    seen = list(dict.fromkeys(key for row in rows.values() for key in row))
    order = [key for key in CONTROLS if key in seen] + [k for k in seen if k not in CONTROLS]
    labels = {key: CONTROLS.get(key, Look(key, "muted", "triangle-left")) for key in order}
    frame = pl.DataFrame([
        {
            "intervention": name,
            "control": labels[key].label,
            "change": said(estimate),
            **_placed("value", estimate),
        }
        for name, row in rows.items()
        for key, estimate in row.items()
    ])  # fmt: skip
    ends = [*frame["value_low"], *frame["value_high"]]
    paired = f"paired, to the untouched model, {protocol}"
    x = channel(alt.X, title=[quantity, paired])
    if quantity.startswith("change of log"):
        x = channel(alt.X, **symlog(ends, LINEAR, [quantity, paired]))
    ranges = scales(list(labels.values()))
    y = alt.Y("intervention:N", sort=list(rows), title=None)
    y = y.axis(alt.Axis(grid=True, tickBand="extent", ticks=False, domain=False))
    within = alt.YOffset(
        "control:N",
        sort=[look.label for look in labels.values()],
        scale=alt.Scale(paddingOuter=0.4),
    )
    stroke = alt.Stroke("control:N", scale=ranges["colour"])
    base = alt.Chart(frame).encode(y=y, yOffset=within, stroke=stroke)
    layers = alt.layer(
        base.mark_rule(strokeWidth=1.4).encode(x=x("value_low:Q"), x2="value_high:Q"),
        zero_line("x"),
        base.mark_point(opacity=1, size=42, strokeWidth=1.4).encode(
            x=x("value:Q"),
            fill=alt.Fill("control:N", scale=ranges["fill"]),
            shape=alt.Shape("control:N", scale=ranges["shape"]),
            tooltip=["intervention:N", "control:N", "change:N"],
        ),
    ).properties(width=WIDTH - 60, height=alt.Step(7, **{"for": "offset"}))
    heading = f"{quantity.partition(' (')[0].capitalize()} · {protocol}"
    return titled(layers, heading, "means with 95 % intervals")


def value_distance(table: NeuronTable) -> Chart | None:
    """How far value vectors turned, 1 − cosine before/after (section 5.1); None where none turned
    measurably.
    """
    distance = 1 - table.grid("value_cosine")
    if not (distance > 0).any():
        return None
    lines = {"furthest neuron of the layer": distance.max(1), "mean of the layer": distance.mean(1)}
    frame = pl.concat(
        pl.DataFrame({"layer": range(len(values)), "of": name, "distance": values})
        for name, values in lines.items()
    ).filter(pl.col("distance") > 0)
    chart = _lines(
        frame,
        alt.X("layer:O", axis=alt.Axis(labelAngle=0), title="layer"),
        alt.Y(
            "distance:Q",
            scale=alt.Scale(type="log"),
            axis=alt.Axis(format=".0e", title="1 − cosine of value vector, base to tuned"),
        ),
        "of",
    )
    barely = "barely " if distance.max() < 0.01 else ""
    return titled(chart, f"Value vectors {barely}turn · {table.protocol}")


def training(
    title: str, unit: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> Chart:
    """One quantity of the training log over optimiser steps (METHOD §8): name to steps and
    values, of which every k-th is drawn where there are more than STEPS.
    """
    frame = pl.concat(
        pl.DataFrame(
            {"of": name, "step": steps, "value": values},
            schema={"of": pl.String, "step": pl.Int64, "value": pl.Float64},
        ).gather_every(-(-len(steps) // STEPS))
        for name, (steps, values) in lines.items()
    )
    share = alt.Scale(domain=[0, 1]) if unit.startswith("share") else alt.Scale(zero=False)
    chart = _lines(
        frame,
        alt.X("step:Q", title="optimiser step", axis=alt.Axis(tickMinStep=1, format="d")),
        alt.Y("value:Q", title=unit, scale=share),
        "of",
        # Marks show where few values are; many would hide the line.
        size=30 if len(frame) < 24 else 8,
    )
    return titled(chart.properties(width=WIDTH - 40, height=200), f"{title} · DPO training")


def _lines(frame: pl.DataFrame, x: alt.X, y: alt.Y, field: str, *, size: int = 30) -> alt.Chart:
    """Lines by the values of a field, told apart by colour and dash."""
    names = frame[field].unique(maintain_order=True).to_list()
    looks = (("blue", "-"), ("vermillion", "--"))
    ranges = scales([
        Look(name, colour, "circle", dash)
        for name, (colour, dash) in zip(names, looks, strict=False)
    ])  # fmt: skip
    mark: Any = alt.Chart(frame).mark_line(
        strokeWidth=1.6, point=alt.OverlayMarkDef(size=size, opacity=1)
    )
    chart: alt.Chart = mark.encode(
        x=x,
        y=y,
        color=alt.Color(f"{field}:N", scale=ranges["colour"], legend=LINE_KEYS),
        strokeDash=alt.StrokeDash(f"{field}:N", scale=ranges["dash"], legend=LINE_KEYS),
        tooltip=[
            alt.Tooltip(f"{field}:N", title="line"),
            x.shorthand,
            alt.Tooltip(y.shorthand, format=".4~g"),
        ],
    )
    return chart
