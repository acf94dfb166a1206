"""How numbers are written for people."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genre_lightning.report.statistics import Interval


def number(value: float, digits: int = 3) -> str:
    """As in a table; a dash for nan."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def digits_beside(score: float, threshold: float) -> int:
    """With how many decimals a score and its threshold are written side by side.

    Two, or as many more as a score below its threshold needs so as not to look equal to it.
    """
    return next(
        (
            digits
            for digits in range(2, 9)
            if score >= threshold or number(score, digits) != number(threshold, digits)
        ),
        9,
    )


def signed(value: float, digits: int = 2) -> str:
    """With its sign, a true minus; a dash for nan."""
    if math.isnan(value):
        return "–"
    text = f"{abs(value):.{digits}f}"
    zero = float(text) == 0
    return text if zero else f"{'−' if value < 0 else '+'}{text}"


def span(value: Interval) -> str:
    """The ends of an interval; nothing where it is undefined."""
    return "" if math.isnan(value.low) else f"{number(value.low)} to {number(value.high)}"
