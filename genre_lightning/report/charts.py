"""Charts as inline SVG: a few shapes with CSS classes, coloured by the page's style sheet.

Each function returns markup that is safe to insert into a page: text is escaped. A chart has a
``role`` and a name for screen readers; its numbers are also in a table or caption.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from genre_lightning.page.document import isolated
from genre_lightning.page.svg import Scale, circle, line, svg, svg_text
from genre_lightning.report.statistics import Interval, Reliability
from genre_lightning.wording import shortened

_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
#: Characters shown of a genre's name beside a heat map.
_MAX_NAME_CHARACTERS = 22


@dataclass(frozen=True)
class Mark:
    """One value in a row of :func:`dot_rows`.

    Attributes:
        kind: CSS class, which sets the colour, and shape: "model" is a dot, "constant" and "prior"
            are ticks, those of :func:`branch_kind` are distinguishable without colour.
        value: nan is not drawn.
        low, high: ends of the interval; nan for none.
    """

    kind: str
    value: float
    low: float = math.nan
    high: float = math.nan


def dot_rows(name: str, rows: Sequence[tuple[str, Sequence[Mark]]]) -> Markup:
    """A row of marks for each label, over a common axis from 0 to the largest value.

    Labels are HTML text beside a drawing that fills the remaining width, so that they keep their
    size on a phone.

    Args:
        name: what the chart shows, for screen readers.
        rows: label and marks of each row.
    """
    values = [v for _, marks in rows for m in marks for v in (m.value, m.high) if v == v]
    # A score of 1 can be 1.0000001 in float32.
    top = max(math.ceil(max(values, default=1.0) * 10 - 1e-5) / 10, 0.1)
    ticks = [tenth / 10 for tenth in range(round(top * 10) + 1)]
    height = 24
    parts = []
    for label, marks in rows:
        lines = [_percent_line("grid", tick / top, tick / top, 0, height) for tick in ticks]
        shapes = [_percent_mark(mark, top, height / 2) for mark in marks]
        parts.append(
            f'<span class="row-label" title="{escape(label)}">{isolated(label)}</span>'
            f'<svg aria-hidden="true" height="{height}">{"".join(lines + shapes)}</svg>'
        )
    numbers = "".join(
        f'<text class="tick{" half" if tenth % 2 else ""}" x="{100 * tick / top:.2f}%" y="13"'
        f' text-anchor="middle">{tick:.1f}</text>'
        for tenth, tick in enumerate(ticks)
    )
    parts.append(f'<span></span><svg aria-hidden="true" height="16">{numbers}</svg>')
    return Markup(
        f'<div class="dot-rows" role="img" aria-label="{escape(name)}">{"".join(parts)}</div>'
    )


def _percent_line(css: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return (
        f'<line class="{css}" x1="{100 * x1:.2f}%" x2="{100 * x2:.2f}%" y1="{y1:g}" y2="{y2:g}"/>'
    )


def _percent_mark(mark: Mark, top: float, y: float) -> str:
    if mark.value != mark.value:
        return ""
    x = mark.value / top
    if mark.kind in ("constant", "prior"):
        return _percent_line(f"mark {mark.kind}", x, x, y - 8, y + 8)
    whisker = ""
    if mark.low == mark.low:
        whisker = _percent_line(f"whisker {mark.kind}", mark.low / top, mark.high / top, y, y)
    return f'{whisker}<svg class="at" x="{100 * x:.2f}%" y="{y:g}">{_shape(mark.kind)}</svg>'


_SQUARE = '<rect class="mark {kind}" x="-3.5" y="-3.5" width="7" height="7"/>'
_DIAMOND = '<path class="mark {kind}" d="M0 -5L5 0L0 5L-5 0Z"/>'
_TRIANGLE_UP = '<path class="mark {kind}" d="M0 -5L4.8 3.6L-4.8 3.6Z"/>'
_TRIANGLE_DOWN = '<path class="mark {kind}" d="M0 5L4.8 -3.6L-4.8 -3.6Z"/>'
#: Shapes of the kinds that are not circles; some come both filled and empty (report.css).
_SHAPES = {
    **dict.fromkeys(("branch2", "branch5"), _SQUARE),
    **dict.fromkeys(("branch3", "branch6"), _DIAMOND),
    **dict.fromkeys(("branch4", "branch8"), _TRIANGLE_UP),
    **dict.fromkeys(("branch7", "branch9"), _TRIANGLE_DOWN),
    "branch10": '<path class="mark {kind}" d="M-4 -4L4 4M-4 4L4 -4"/>',
    "branch11": '<path class="mark {kind}" d="M-5 0L5 0M0 -5L0 5"/>',
    "branch12": '<rect class="mark {kind}" x="-5" y="-1.8" width="10" height="3.6"/>',
}


def branch_kind(index: int) -> str:
    """Mark kind of a model's branch, by its index; the kinds repeat after twelve."""
    return f"branch{index % 12 + 1}"


def _shape(kind: str) -> str:
    """A mark centred on the origin."""
    return _SHAPES.get(kind, '<circle class="mark {kind}" r="4.5"/>').format(kind=kind)


def legend(kind: str) -> Markup:
    """A mark for the legend below a chart; "interval" is the model's mark with a whisker."""
    if kind in ("constant", "prior"):
        shape = f'<line class="mark {kind}" x1="0" y1="-7" x2="0" y2="7"/>'
    elif kind == "interval":
        shape = line("whisker model", -10, 0, 10, 0) + _shape("model")
    else:
        shape = _shape(kind)
    return Markup(f'<svg viewBox="-11 -7 22 14" aria-hidden="true">{shape}</svg>')


def small_interval(name: str, value: Interval) -> Markup:
    """A dot with its interval on an axis from 0 to 1, for a table cell."""
    width, height = 110, 18
    x = Scale(0.0, 1.0, 5, width - 5)
    y = height / 2
    parts = [line("grid", x(0), y, x(1), y)]
    parts += [line("grid", x(t), y - 3, x(t), y + 3) for t in (0.0, 0.5, 1.0)]
    if value.low == value.low:
        parts.append(line("whisker model", x(value.low), y, x(value.high), y))
    parts.append(circle("mark model", x(value.value), y, 4.5))
    return svg(name, width, height, parts, css="inline")


def precision_recall_panel(
    name: str,
    recall: np.ndarray,
    precision: np.ndarray,
    prevalence: float,
    point: tuple[float, float] | None,
) -> Markup:
    """A precision-recall curve in steps, on a unit square.

    Args:
        name: what the chart shows, for screen readers.
        recall: (K,) ascending.
        precision: (K,) between the previous recall and this one.
        prevalence: share of positives, the precision of a random ranking.
        point: (recall, precision) at the fitted threshold; None where undefined.
    """
    frame = _Square(196, 176)
    path = [f"M{frame.x(0):.1f} {frame.y(precision[0]):.1f}"]
    previous_recall = 0.0
    for r, p in zip(recall.tolist(), precision.tolist(), strict=True):
        path.append(
            f"L{frame.x(previous_recall):.1f} {frame.y(p):.1f}L{frame.x(r):.1f} {frame.y(p):.1f}"
        )
        previous_recall = r
    chance_y = frame.y(prevalence)
    parts = [
        *frame.axes("recall", "precision"),
        line("chance", frame.x(0), chance_y, frame.x(1), chance_y),
        f'<path class="curve" d="{"".join(path)}"/>',
    ]
    if point is not None:
        parts.append(circle("mark model ringed", frame.x(point[0]), frame.y(point[1]), 4.5))
    return svg(name, frame.width, frame.height, parts)


def reliability_panel(name: str, bins: Reliability, *, large: bool = False) -> Markup:
    """Each bin's frequency over its mean score, with Wilson intervals and a histogram below.

    Args:
        name: what the chart shows, for screen readers.
        bins: from :func:`genre_lightning.report.statistics.reliability`.
        large: twice the size, with an axis for the counts.
    """
    frame = _Square(380, 360) if large else _Square(196, 176)
    histogram_height = 74 if large else 26
    dot_scale = 1.0 if large else 0.75
    parts = [
        *frame.axes("mean score", "share that is true"),
        line("chance", frame.x(0), frame.y(0), frame.x(1), frame.y(1)),
    ]
    for k in np.flatnonzero(bins.count > 0).tolist():
        x = frame.x(bins.mean_score[k])
        parts.append(
            line("whisker model", x, frame.y(float(bins.low[k])), x, frame.y(float(bins.high[k])))
        )
        parts.append(circle("mark model", x, frame.y(float(bins.frequency[k])), 4.5 * dot_scale))
    bottom = frame.height + (8 if large else 2) + histogram_height
    # a log scale, since counts span orders of magnitude: most scores of most models are near 0
    max_log_count = math.log10(1 + int(bins.count.max()))
    for k, count in enumerate(bins.count.tolist()):
        bar_height = histogram_height * math.log10(1 + count) / max_log_count
        left, right = frame.x(bins.edges[k]), frame.x(bins.edges[k + 1])
        parts.append(
            f'<rect class="count" x="{left + 0.5:.1f}" y="{bottom - bar_height:.1f}"'
            f' width="{right - left - 1:.1f}" height="{bar_height:.1f}">'
            f"<title>{bins.edges[k]:.1f} to {bins.edges[k + 1]:.1f}: {count:,}</title></rect>"
        )
    parts.append(line("axis", frame.x(0), bottom, frame.x(1), bottom))
    if large:
        for power in range(0, int(max_log_count) + 1):
            y = bottom - histogram_height * math.log10(1 + 10**power) / max_log_count
            parts.append(svg_text("tick", frame.x(0) - 5, y + 3, f"{10**power:,}", anchor="end"))
        parts.append(
            svg_text("axis-name", frame.x(0.5), bottom + 15, "cells per bin, log scale", "middle")
        )
    return svg(name, frame.width, bottom + (20 if large else 2), parts)


def heat_map(name: str, shares: np.ndarray, labels: Sequence[str]) -> Markup:
    """A square of labelled, coloured cells for (G, G) shares in [0, 1]; nan is left blank."""
    cell_size = 18 if len(labels) <= 20 else 14
    # Long labels would leave no room for the cells, whose titles have the full names.
    short = [shortened(name, _MAX_NAME_CHARACTERS) for name in labels]
    edge = 10 + max(map(_text_width, short))
    size = edge + cell_size * len(labels) + 2
    parts = []
    for i, label in enumerate(labels):
        middle = edge + cell_size * (i + 0.5)
        parts.append(svg_text("tick", edge - 5, middle + 3.5, short[i], anchor="end"))
        parts.append(
            f'<text class="tick" transform="translate({middle + 3.5:.1f} {edge - 5}) rotate(-90)">'
            f"{escape(short[i])}</text>"
        )
        for j, other in enumerate(labels):
            value = float(shares[i, j])
            x, y = edge + cell_size * j, edge + cell_size * i
            position = f'x="{x}" y="{y}" width="{cell_size}" height="{cell_size}"'
            if value != value:
                parts.append(f'<rect class="cell none" {position}/>')
                continue
            parts.append(
                f'<rect class="cell" style="--v:{value:.2f}" {position}>'
                f"<title>{escape(label)}, {escape(other)}: {value:.0%}</title></rect>"
            )
    return svg(name, size, size, parts)


def _text_width(text: str) -> int:
    """Pixels that a label of 11 px needs at most, except in unusually wide letters."""
    return round(sum(11 if unicodedata.east_asian_width(c) in "WF" else 7.2 for c in text))


class _Square:
    """A unit square with ticks on both axes."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.x = Scale(0.0, 1.0, 36, width - 8)
        self.y = Scale(0.0, 1.0, height - 32, 8)

    def axes(self, x_name: str, y_name: str) -> Iterable[str]:
        left, right, low, high = self.x(0), self.x(1), self.y(0), self.y(1)
        for tick in _TICKS:
            yield line("grid", left, self.y(tick), right, self.y(tick))
            yield line("grid", self.x(tick), low, self.x(tick), high)
        for tick, text in ((0.0, "0"), (0.5, "0.5"), (1.0, "1")):
            yield svg_text("tick", self.x(tick), low + 13, text, "middle")
            yield svg_text("tick", left - 5, self.y(tick) + 3.5, text, "end")
        yield svg_text("axis-name", (left + right) / 2, low + 27, x_name, "middle")
        yield (
            f'<text class="axis-name" text-anchor="middle"'
            f' transform="translate(10 {(low + high) / 2:.1f}) rotate(-90)">{escape(y_name)}</text>'
        )
