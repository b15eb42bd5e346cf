"""Dialling anything to a price by its strength."""

from __future__ import annotations

import math
from collections.abc import Callable

ROUNDS = 9
# Within these shares of the price it counts as reached; a little below is aimed at.
NEAR, AIM = 0.97, 0.985
# Rounds after which a cost is taken to rise as it did between the last two, and not squared.
TRUSTED = 4


def dialled(cost: Callable[[float], float], price: float, most: float) -> tuple[float, float]:
    """The greatest strength up to `most` within the price, to a few percent, and its cost.

    A cost that rises with the square of the strength, as a KL does near 0, is found in two or three
    tries; the interval of strengths is halved where that leads nowhere.

    Args:
        cost: from a strength to what it costs; infinite where it cannot be told.
        price: what it may cost.
        most: the greatest strength.

    Returns:
        Strength and cost; both 0 where every strength that was tried costs more.
    """
    strength, low, high, paid = min(1.0, most), 0.0, most, 0.0
    before: tuple[float, float] | None = None
    for tried in range(ROUNDS):
        spent = cost(strength)
        if spent <= price:
            low, paid = strength, spent
            if spent >= NEAR * price or strength == most:
                break
        else:
            high = strength
        power = _power(before, (strength, spent)) if before and tried >= TRUSTED else 2.0
        before = strength, spent
        aimed = strength * (AIM * price / spent) ** (1 / power) if spent > 0 else most
        aimed = min(aimed, most)
        inside = low < aimed < high or (aimed == most and high == most)
        strength = aimed if inside else (low + high) / 2
    return low, paid


def _power(before: tuple[float, float], now: tuple[float, float]) -> float:
    """The power of the strength by which a cost rose between two tries; 2 where it did not."""
    (strength, spent), (to, paid) = before, now
    rises = min(spent, paid) > 0 and max(spent, paid) < math.inf
    rises = rises and (to - strength) * (paid - spent) > 0
    return math.log(paid / spent) / math.log(to / strength) if rises else 2.0
