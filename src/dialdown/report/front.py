"""The front: toxicity against its price, every intervention at several strengths (table 2, METHOD
§5, §6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ..errors import DialdownError, nearest
from ..evaluation.bootstrap import Estimate
from ..models.lm import Protocol
from .drawing import headline
from .style import COLOURS, WIDTH, style

Price = Literal["log_ppl", "kl"]


class Family(NamedTuple):
    """How a family of interventions is drawn: the kind of an edit by its marker, what it follows by
    filling and line.
    """

    label: str
    colour: str
    marker: str
    line: str
    filled: bool


FAMILIES = {
    "none": Family("untouched", "ink", "o", "-", True),
    "dpo": Family("DPO", "vermillion", "*", "-", True),
    "gains": Family("neuron gains", "sky", "o", "-", True),
    "gains_kept": Family("neuron gains, few kept", "sky", "o", ":", False),
    "step": Family("one step, no training", "ink", "h", "--", True),
    "steer": Family("steering", "purple", "^", "-.", True),
    "patch": Family("patching", "blue", "s", "-", True),
    "patch_shift": Family("patching, shift", "blue", "s", "--", False),
    "edit_probe_set": Family("probe, set", "green", "D", "-", True),
    "edit_probe_shift": Family("probe, shift", "green", "v", "-", True),
    "edit_probe_scale": Family("probe, scale", "green", "P", "-", True),
    "edit_probe_free_set": Family("contrast, set", "orange", "D", "--", False),
    "edit_probe_free_shift": Family("contrast, shift", "orange", "v", "--", False),
    "edit_probe_free_scale": Family("contrast, scale", "orange", "P", "--", False),
    "random_neurons_set": Family("random neurons, set", "muted", "D", ":", False),
    "random_neurons_shift": Family("random neurons, shift", "muted", "v", ":", False),
    "random_neurons_scale": Family("random neurons, scale", "muted", "P", ":", False),
    "random_neurons_gains": Family("random neurons, gains", "muted", "o", ":", False),
    "random_direction": Family("random direction", "muted", "+", ":", True),
}
PRICES: dict[Price, str] = {
    "log_ppl": "change of log-perplexity (nats per token)",
    "kl": "KL from the untouched model (nats per token)",
}
# The front's axis of prices is linear up to here.
LINEAR = 0.01
TICKS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


@dataclass(frozen=True)
class FrontPoint:
    """One intervention at one strength, as the front shows it.

    Attributes:
        family: a key of FAMILIES; points of one family are joined in order of strength.
        name: the intervention's name, to be read.
        strength: what the family is dialled by (optimiser step, steering α, β, neurons patched); 0
            for the untouched model.
        toxicity: mean score of the continuations.
        log_ppl: change of log-perplexity to the untouched model, paired, nats per token.
        kl: KL(base ‖ edited) on the reference text, nats per token.
    """

    family: str
    name: str
    strength: float
    toxicity: Estimate
    log_ppl: Estimate
    kl: Estimate

    def price(self, quantity: Price) -> Estimate:
        """The price asked for."""
        return self.log_ppl if quantity == "log_ppl" else self.kl


def pareto_optimal(points: Sequence[FrontPoint], quantity: Price) -> list[bool]:
    """For each point, that no other is at least as good in toxicity and in price and better in one,
    by their means.
    """
    places = [(point.price(quantity).mean, point.toxicity.mean) for point in points]
    return [not any(x <= a and y <= b and (x, y) != (a, b) for x, y in places) for a, b in places]


def check_front(points: Sequence[FrontPoint]) -> None:
    """Refuse points that cannot be drawn.

    Raises:
        DialdownError: there are none, or one is of an unknown family.
    """
    if not points:
        raise DialdownError(
            "The front was given no points: pass one FrontPoint for each intervention and strength."
        )
    for point in points:
        if point.family not in FAMILIES:
            raise DialdownError(
                f"The point {point.name!r} is of the unknown family {point.family!r}: "
                f"{nearest(point.family, FAMILIES)}"
            )


def by_family(points: Sequence[FrontPoint]) -> dict[str, list[FrontPoint]]:
    """The families there are, each in order of strength."""
    families = {name: [point for point in points if point.family == name] for name in FAMILIES}
    return {
        name: sorted(ours, key=lambda one: one.strength) for name, ours in families.items() if ours
    }


def counted_front(points: Sequence[FrontPoint]) -> str:
    """What the intervals are over: prompts for toxicity, blocks of text for the prices."""
    prompts, blocks = {point.toxicity.n for point in points}, {point.log_ppl.n for point in points}
    return f"{_span(prompts)} prompts, {_span(blocks)} blocks of text; means with 95 % intervals"


def front(points: Sequence[FrontPoint], protocol: Protocol, *, concept: str = "toxicity") -> Figure:
    """Toxicity against log-perplexity and against KL, every intervention at several strengths
    (table 2, METHOD §5, §6).

    The large mark of a line is its greatest strength; a ring marks what no other point beats in
    both quantities.

    Args:
        points: all measured under one protocol.
        protocol: its name.
        concept: what the scores are of.

    Raises:
        DialdownError: there are no points, or one is of an unknown family.
    """
    check_front(points)
    families = by_family(points)
    with style():
        figure = Figure(figsize=(1.5 * WIDTH, 4.3 + 0.17 * ((len(families) + 4) // 4)))
        panels: list[Axes] = list(figure.subplots(1, 2, sharey=True))
        headline(
            figure,
            panels[0],
            f"{concept.capitalize()} against its price · {protocol}",
            counted_front(points),
        )
        for axes, quantity in zip(panels, PRICES, strict=True):
            for name, ours in families.items():
                _family_line(axes, ours, FAMILIES[name], quantity)
            best = [
                one
                for one, kept in zip(points, pareto_optimal(points, quantity), strict=True)
                if kept
            ]
            _rings(axes, best, quantity)
            _price_axis(
                axes,
                [
                    end
                    for one in points
                    for end in (one.price(quantity).low, one.price(quantity).high)
                ],
            )
            axes.set_xlabel(PRICES[quantity])
        panels[0].set_ylabel(f"{concept}, mean score")
        top = max(0.05, *(point.toxicity.high for point in points))
        panels[0].set_ylim(-0.05 * top, 1.05 * top)
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=4,
            columnspacing=1.2,
        )
    return figure


def _family_line(axes: Axes, points: Sequence[FrontPoint], look: Family, quantity: Price) -> None:
    prices, toxicity = [one.price(quantity) for one in points], [one.toxicity for one in points]
    x, y = [one.mean for one in prices], [one.mean for one in toxicity]
    colour = COLOURS[look.colour]
    thin: dict[str, Any] = {"color": colour, "linewidth": 0.7, "alpha": 0.5}
    size = 9 if look.marker == "*" else 5.5
    face = colour if look.filled else COLOURS["ground"]
    mark: dict[str, Any] = {"marker": look.marker, "markersize": size, "markerfacecolor": face}
    axes.hlines(y, [one.low for one in prices], [one.high for one in prices], **thin)
    axes.vlines(x, [one.low for one in toxicity], [one.high for one in toxicity], **thin)
    axes.plot(x, y, look.line, color=colour, linewidth=1.1, label=look.label, **mark)
    if len(points) > 1:
        axes.plot(x[-1:], y[-1:], color=colour, **{**mark, "markersize": 1.6 * size})


def _rings(axes: Axes, points: Sequence[FrontPoint], quantity: Price) -> None:
    axes.plot(
        [one.price(quantity).mean for one in points],
        [one.toxicity.mean for one in points],
        "o",
        color=COLOURS["ink"],
        markerfacecolor="none",
        markersize=11,
        label="Pareto-optimal",
    )


def _price_axis(axes: Axes, ends: Sequence[float]) -> None:
    """Linear around zero, logarithmic beyond: prices span three orders."""
    axes.set_xscale("symlog", linthresh=LINEAR, linscale=0.35)
    low, high = min(*ends, -LINEAR / 2), max(*ends, LINEAR)
    axes.set_xlim(1.2 * low, 1.3 * high)
    axes.axvline(0, color=COLOURS["muted"], linewidth=0.8, zorder=1)
    # The side below zero is narrow, and one of its labels has room beside the zero.
    below = [-tick for tick in TICKS if low <= -tick][-1:]
    shown = [*below, 0, *(tick for tick in TICKS if tick <= 1.3 * high)]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}".replace("-", "−")))


def _span(counts: set[int]) -> str:
    return f"{min(counts):,}" if len(counts) == 1 else f"{min(counts):,}–{max(counts):,}"
