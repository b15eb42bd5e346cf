"""The charts of interventions: the trade-off, and controls.

    save(tradeoff(points, "strict"), Path("figures/front-strict"))

Means stand with their 95 % intervals, and every chart names its protocol. See `neuron_charts` for
the paper's figures 1 to 8.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from textwrap import wrap
from typing import Literal

import altair as alt
import polars as pl

from ..evaluation.bootstrap import Estimate
from ..models.protocol import Protocol
from .chart_style import (
    COLOURS,
    DASHES,
    WIDTH,
    Chart,
    channel,
    scales,
    symlog,
    titled,
    tooltip_text,
    zero_line,
)
from .names import CONTROLS, FAMILIES, Look
from .text import span

Price = Literal["log_ppl", "kl"]
PRICES: dict[Price, str] = {
    "log_ppl": "change of log-perplexity (nats per token)",
    "kl": "KL from the untouched model (nats per token)",
}
# Differences of log-perplexity span three orders: linear below this, logarithmic above.
LINEAR = 0.01
# Colour and shape of a ladder's judges, the first one first.
JUDGES = (("blue", "circle"), ("vermillion", "diamond"), ("muted", "square"))
# Behind the names of a ladder's methods that are not comparable at its price.
SIGNS = "†‡"


@dataclass(frozen=True)
class Point:
    """One intervention at one strength, in the trade-off.

    Attributes:
        family: a key of FAMILIES.
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
    price: Price = "log_ppl",
    everything: Sequence[Point] = (),
    concept: str = "toxicity",
) -> Chart:
    """Toxicity, or another concept, against the price of it under one protocol (table 2 as a
    picture, METHOD §5, §6). `everything` are the points of all charts that share their axes.

    The large mark of a line is its greatest strength; a ring marks what no other point beats in
    both quantities.
    """
    heading = f"{concept.capitalize()} against its price · {protocol}"
    named = [f"{letter} {name}".replace(" ", "\u00a0") for name, letter in _letters(points).items()]
    lines = wrap("\u00a0· ".join(named), width=76)
    panel = _price_panel(points, price, [*points, *everything], concept)
    return titled(panel, heading, _counted(points, price), *lines, columns=3)


def _counted(points: Sequence[Point], price: Price) -> str:
    """What the intervals are over: prompts for toxicity, blocks of text for the prices."""
    prompts = {point.toxicity.n for point in points}
    blocks = {paid.n for point in points if (paid := point.price(price)) and paid.n}
    return (
        f"{span(prompts)} prompts, {span(blocks)} blocks; 95 % intervals; ring: none is better "
        "in both"
    )


def _price_panel(
    points: Sequence[Point], price: Price, everything: Sequence[Point], concept: str
) -> Chart:
    paid = filter(None, (point.price(price) for point in everything))
    ends = [end for estimate in paid for end in (estimate.low, estimate.high)]
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
        joined.encode(order=alt.Order("dial:Q"), strokeDash=alt.StrokeDash("dash:N", scale=None)),
        zero_line("x"),
        thin.encode(x=x("price_low:Q"), x2=alt.X2("price_high")),
        thin.encode(y=y("score_low:Q"), y2=alt.Y2("score_high")),
        best.encode(stroke=alt.value(COLOURS["ink"])),
        base.mark_point(opacity=1, strokeWidth=1.4).encode(
            fill=alt.Fill("family:N", scale=looks["fill"]),
            shape=alt.Shape("family:N", scale=looks["shape"]),
            size=alt.condition("datum.greatest", alt.value(170), alt.value(60)),
            tooltip=[alt.Tooltip(f"{fact}:N") for fact in ("family", "name", *facts)],
        ),
        base.mark_text(dx=9, dy=-8, fontSize=10).encode(
            text=alt.Text("letter:N"), stroke=alt.value(None), fill=alt.value(COLOURS["ink"])
        ),
    ).properties(width=WIDTH + 60, height=250)


def _letters(points: Sequence[Point]) -> dict[str, str]:
    """For interventions that share a mark: name to the letter beside the mark."""
    names = [point.name for point in points if point.family in ("patch", "other")]
    return dict(zip(names, ascii_lowercase, strict=False)) if len(names) > 1 else {}


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
                "toxicity": tooltip_text(point.toxicity),
                "change of log-perplexity": tooltip_text(point.log_ppl) if point.log_ppl else "",
                "KL": tooltip_text(point.kl) if point.kl else "",
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
    """Interventions and their controls, each with its 95 % interval (METHOD §5): of each label the
    estimates by control, the intervention itself under the empty name; `quantity` has a unit.
    """
    seen = list(dict.fromkeys(key for row in rows.values() for key in row))
    order = [key for key in CONTROLS if key in seen] + [k for k in seen if k not in CONTROLS]
    labels = {key: CONTROLS.get(key, Look(key, "muted", "triangle-left")) for key in order}
    paired = f"paired, to the untouched model, {protocol}"
    layers = _in_rows(rows, labels, ("intervention", "control", "change"), [quantity, paired])
    heading = f"{quantity.partition(' (')[0].capitalize()} · {protocol}"
    return titled(layers, heading, "means with 95 % intervals")


def ladder(
    rows: Mapping[str, Mapping[str, Estimate]],
    concept: str,
    kl: float,
    caveats: Mapping[str, Collection[str]] | None = None,
) -> Chart:
    """Methods at one price, `kl` nats per token: of each method what each judge says, at most
    three judges in one order, with 95 % intervals.

    `caveats` are at most two reasons why a method is not comparable at the price, each with the
    methods it is true of, which have its sign behind their name.
    """
    signed = dict(zip(SIGNS, (caveats or {}).items(), strict=False))
    signs = {
        name: "".join(sign for sign, (_, names) in signed.items() if name in names) for name in rows
    }
    explained = [f"{sign} {words}" for sign, (words, names) in signed.items() if names]
    rows = {f"{name} {signs[name]}".rstrip(): row for name, row in rows.items()}
    judges = list(next(iter(rows.values())))
    looks = {judge: Look(judge, *look) for judge, look in zip(judges, JUDGES, strict=False)}
    axis = [f"{concept} (mean score)", "unseen prompts, strict"]
    layers = _in_rows(rows, looks, ("method", "judge", concept), axis)
    return titled(layers, f"Methods at a KL of {kl:g}", "means with 95 % intervals", *explained)


def _in_rows(
    rows: Mapping[str, Mapping[str, Estimate]],
    looks: Mapping[str, Look],
    fields: tuple[str, str, str],
    axis: list[str],
) -> Chart:
    """Estimates with their intervals, one line of a plot for each row, one mark for each key in it;
    `fields` are the names of a row, a key and a value under the pointer.
    """
    line, key, value = fields
    frame = pl.DataFrame([
        {
            line: name,
            key: looks[mark].label,
            value: tooltip_text(estimate),
            **_placed("value", estimate),
        }
        for name, row in rows.items()
        for mark, estimate in row.items()
    ])  # fmt: skip
    x = channel(alt.X, title=axis)
    ranges = scales(list(looks.values()))
    y = alt.Y(f"{line}:N", sort=list(rows), title=None)
    # Fonts that stand in for Arial are wider than what a figure is laid out with.
    extent = 6.5 * max(map(len, rows))
    y = y.axis(alt.Axis(grid=True, tickBand="extent", ticks=False, domain=False, minExtent=extent))
    within = alt.YOffset(
        f"{key}:N", sort=[look.label for look in looks.values()], scale=alt.Scale(paddingOuter=0.4)
    )
    stroke = alt.Stroke(f"{key}:N", scale=ranges["colour"])
    base = alt.Chart(frame).encode(y=y, yOffset=within, stroke=stroke)
    layers: Chart = alt.layer(
        base.mark_rule(strokeWidth=1.4).encode(x=x("value_low:Q"), x2=alt.X2("value_high")),
        zero_line("x"),
        base.mark_point(opacity=1, size=42, strokeWidth=1.4).encode(
            x=x("value:Q"),
            fill=alt.Fill(f"{key}:N", scale=ranges["fill"]),
            shape=alt.Shape(f"{key}:N", scale=ranges["shape"]),
            tooltip=[alt.Tooltip(f"{fact}:N") for fact in fields],
        ),
    ).properties(width=WIDTH - 60, height=alt.Step(7, **{"for": "offset"}))
    return layers
