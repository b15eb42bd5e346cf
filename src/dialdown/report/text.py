"""Numbers as the report writes them: a true minus sign, no negative zero, the interval beside the
mean.
"""

from __future__ import annotations

from ..evaluation.bootstrap import Estimate

DIGITS = 3


def number(value: float, digits: int = DIGITS, *, signed: bool = False) -> str:
    """A number with fixed decimals."""
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if not text.strip("+-0."):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def interval(estimate: Estimate, *, signed: bool = False) -> str:
    """`[low, high]`, the bootstrap 95 % interval."""
    return f"[{number(estimate.low, signed=signed)}, {number(estimate.high, signed=signed)}]"


def with_interval(estimate: Estimate, *, signed: bool = False) -> str:
    """`mean [low, high]`."""
    return f"{number(estimate.mean, signed=signed)} {interval(estimate, signed=signed)}"


def units(counts: set[int]) -> str:
    """`n = 128`, or `n = 64–128` where rows differ."""
    return f"n = {min(counts):,}" if len(counts) == 1 else f"n = {min(counts):,}–{max(counts):,}"


def listed(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return (
        " and ".join(part for part in (", ".join(items[:-1]), items[-1]) if part) if items else ""
    )
