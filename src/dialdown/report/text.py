"""Numbers as the report writes them: a true minus sign, no negative zero, the interval beside the
mean.
"""

from __future__ import annotations

from ..evaluation.bootstrap import FEW, Estimate
from .names import UNITS

DIGITS = 3


def number(value: float, digits: int = DIGITS, *, signed: bool = False) -> str:
    """A number with fixed decimals."""
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if not text.strip("+-0."):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def percent(share: float) -> str:
    """A share in percent."""
    return f"{number(100 * share, 1)}%"


def with_interval(estimate: Estimate, *, signed: bool = False, share: bool = False) -> str:
    """`mean [low, high]`, the bootstrap 95 % interval; a share in percent."""
    ends = (estimate.mean, estimate.low, estimate.high)
    mean, low, high = (percent(end) if share else number(end, signed=signed) for end in ends)
    return f"{mean} [{low}, {high}]"


def estimate_text(
    estimate: Estimate, unit: str, *, signed: bool = False, share: bool = False
) -> str:
    """The one way a sentence says a number: `mean [low, high] (n = 128 prompts)`."""
    few = "" if estimate.n >= FEW else ", too few to decide"
    return f"{with_interval(estimate, signed=signed, share=share)} (n = {estimate.n:,} {unit}{few})"


def change_text(change: Estimate, metric: str, note: str = "") -> str:
    """`estimate_text` of a difference of a metric; `note` says more of its n."""
    return estimate_text(change, f"{UNITS[metric]}{note}", signed=True)


def span(counts: set[int]) -> str:
    """`128`, or `64–128` where counts differ."""
    return "–".join(f"{end:,}" for end in sorted({min(counts, default=0), max(counts, default=0)}))


def listed(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return (
        " and ".join(part for part in (", ".join(items[:-1]), items[-1]) if part) if items else ""
    )
