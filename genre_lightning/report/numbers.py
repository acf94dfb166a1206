"""Formatting of numbers for display."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genre_lightning.report.statistics import Interval


def number(value: float, digits: int = 3) -> str:
    """Format a number for a table; nan becomes a dash."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def digits_beside(score: float, threshold: float) -> int:
    """Number of decimals with which to show a score beside its threshold.

    Two, or more if a score below its threshold would otherwise look equal to it.
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
    """Format a number with its sign (a true minus); nan becomes a dash."""
    if math.isnan(value):
        return "–"
    text = f"{abs(value):.{digits}f}"
    zero = float(text) == 0
    return text if zero else f"{'−' if value < 0 else '+'}{text}"


def span(value: Interval) -> str:
    """Format the ends of an interval; empty if it is undefined."""
    return "" if math.isnan(value.low) else f"{number(value.low)} to {number(value.high)}"
