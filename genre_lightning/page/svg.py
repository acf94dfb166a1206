"""Shapes of an inline SVG, coloured by the page's style sheet. Text is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape


@dataclass(frozen=True)
class Scale:
    """A linear scale from numbers to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def svg(name: str, width: float, height: float, parts: Iterable[str], css: str = "") -> Markup:
    """A drawing of these parts; its name is for screen readers."""
    extra = f' class="{css}"' if css else ""
    return Markup(  # parts come from functions that escape their texts
        f'<svg role="img"{extra} aria-label="{escape(name)}" viewBox="0 0 {width:g} {height:g}"'
        f' width="{width:g}" height="{height:g}">{"".join(parts)}</svg>'
    )


def line(css: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """A line with a CSS class."""
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def circle(css: str, x: float, y: float, radius: float) -> str:
    """A circle with a CSS class."""
    return f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'


def svg_text(css: str, x: float, y: float, text: str, anchor: str = "start") -> str:
    """Text with a CSS class."""
    return (
        f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )
