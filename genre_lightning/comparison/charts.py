"""Charts of a leaderboard as inline SVG, whose elements name their group and run.

``data-g`` is the number of the group and ``data-r`` that of the run: the page's script uses them to
highlight what belongs together. ``--v`` from 0 to 1 sets the colour: how good the group is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from genre_lightning.comparison.run import Setting, format_setting, setting
from genre_lightning.comparison.swept import distinct_settings, setting_order
from genre_lightning.page.document import isolated
from genre_lightning.page.svg import Scale, circle, line, svg, svg_text
from genre_lightning.wording import shortened, without_middle

#: More points would not change how a curve looks.
MAX_POINTS = 200
#: An axis with at most this many values, at least this many pixels apart, labels each of them; any
#: other axis has round numbers.
MAX_NAMED_VALUES = 9
MIN_GAP = 15
#: More axes than this need a wider drawing.
MAX_NARROW_AXES = 6
#: Positive numbers are on a logarithmic scale if the largest is this many times the smallest,
MIN_LOG_RATIO = 100
#: or this many times and they are more evenly spaced on that scale.
MIN_EVEN_LOG_RATIO = 4


@dataclass(frozen=True)
class Mark:
    """What a chart draws for a run or a group.

    Attributes:
        group: number of the group.
        run: number of the run; None for a whole group.
        shade: from 0, worst, to 1, best; None without a rank.
        name: displayed name.
        status: of the run or group.
    """

    group: int
    run: int | None
    shade: float | None
    name: str
    status: str = "completed"

    @property
    def opening(self) -> str:
        """Opening tag of the SVG group."""
        run = "" if self.run is None else f' data-r="{self.run}"'
        style = "" if self.shade is None else f' style="--v:{self.shade:.3f}"'
        css = "run" + (" unranked" if self.shade is None else "")
        css += "" if self.status == "completed" else " unfinished"
        return f'<g class="{css}" data-g="{self.group}"{run}{style}>'


def curves(
    name: str,
    series: Sequence[tuple[Mark, Sequence[tuple[float, float]]]],
    large: bool = False,
) -> Markup:
    """Lines over epochs. A run that has not finished ends in a ring.

    Args:
        name: of the metric.
        series: (epochs trained, value) of each run, in order.
        large: twice the size.
    """
    width, height = (620, 474) if large else (330, 214)
    values = [y for _, points in series for _, y in points]
    low, high = _axis_range(values)
    epochs = [x for _, points in series for x, _ in points]
    last_epoch = max(epochs, default=1)
    ticks = _ticks(low, high, 5)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    x_low, x_high = (
        (min([1, *epochs]), last_epoch) if last_epoch > 1 else (min([0.5, *epochs]), 1.5)
    )
    x = Scale(x_low, x_high, 62 if large else 44, width - 8)
    y = Scale(low, high, height - (48 if large else 34), 10)
    parts = []
    for tick in ticks:
        parts.append(line("grid", x.start, y(tick), x.end, y(tick)))
        parts.append(svg_text("tick", x.start - 7, y(tick) + 3.5, _format_tick(tick, ticks), "end"))
    for tick in _integer_ticks(x.low, last_epoch):
        parts.append(
            svg_text("tick", x(tick), y.start + (20 if large else 15), f"{tick}", "middle")
        )
    parts.append(line("axis", x.start, y.start, x.end, y.start))
    parts.append(svg_text("axis-name", (x.start + x.end) / 2, height - 3, "epoch", "middle"))
    parts.append(
        # Values above the frame are clipped; the sides leave room for a ring.
        f'<svg class="plot" x="{x.start - 4}" y="{y.end}" width="{x.end - x.start + 8}"'
        f' height="{y.start - y.end}" viewBox="{x.start - 4} {y.end} {x.end - x.start + 8}'
        f' {y.start - y.end}"><g class="lines">'
    )
    # the best last, on top of the others
    for mark, points in sorted(series, key=lambda item: item[0].shade or -1.0):
        if not points:
            continue
        step = math.ceil(len(points) / MAX_POINTS)
        kept_points = [*points[:-1:step], points[-1]]
        path = "L".join(f"{x(epoch):.1f} {y(value):.1f}" for epoch, value in kept_points)
        parts.append(f'{mark.opening}<path class="curve" d="M{path}"/>')
        if len(points) == 1 or mark.status != "completed":
            parts.append(circle("end", x(points[-1][0]), y(points[-1][1]), 3.2))
        parts.append(f"<title>{escape(mark.name)}</title></g>")
    parts.append("</g></svg>")
    return svg(f"{name} by epoch", width, height, parts, css="curves large" if large else "curves")


def spread(rows: Sequence[tuple[Mark, Sequence[float]]]) -> Markup:
    """A row for each group: a dot for each run, a tick at the mean, a line of one sd each way."""
    low, high = _axis_range([value for _, values in rows for value in values])
    ticks = _ticks(low, high, 6)
    x = Scale(min(low, ticks[0]), max(high, ticks[-1]), 0, 100)
    height = 26
    grid = "".join(
        f'<line class="grid" x1="{x(tick):.2f}%" x2="{x(tick):.2f}%" y1="0" y2="{height}"/>'
        for tick in ticks
    )
    parts = []
    for mark, values in rows:
        shapes = []
        mean = statistics.fmean(values)
        if len(values) > 1:
            sd = statistics.stdev(values)
            low, high = max(mean - sd, x.low), min(mean + sd, x.high)
            shapes.append(
                f'<line class="whisker" x1="{x(low):.2f}%" x2="{x(high):.2f}%"'
                f' y1="{height / 2}" y2="{height / 2}"/>'
                f'<line class="mean" x1="{x(mean):.2f}%" x2="{x(mean):.2f}%" y1="5" y2="21"/>'
            )
        shapes += [
            f'<circle class="dot" cx="{x(value):.2f}%" cy="{height / 2}" r="4"/>'
            for value in values
        ]
        parts.append(
            f'<div class="spread-row" data-g="{mark.group}"><span class="row-label">'
            f'{isolated(mark.name)}</span><svg height="{height}" aria-hidden="true">{grid}'
            f"{mark.opening}{''.join(shapes)}</g></svg></div>"
        )
    tick_labels = "".join(
        f'<text class="tick{" half" if number % 2 else ""}" x="{x(tick):.2f}%" y="13"'
        f' text-anchor="middle">{_format_tick(tick, ticks)}</text>'
        for number, tick in enumerate(ticks)
    )
    parts.append(
        f'<div class="spread-row" aria-hidden="true"><span></span>'
        f'<svg height="16">{tick_labels}</svg></div>'
    )
    stacked = " stacked" if max(len(mark.name) for mark, _ in rows) > 18 else ""
    return Markup(
        f'<div class="spread{stacked}" role="img" aria-label="Values of each run, by settings">'
        f"{''.join(parts)}</div>"
    )


def parallel(
    keys: Sequence[str],
    metric: str,
    rows: Sequence[tuple[Mark, Sequence[Setting], float | None]],
    log_scales: Mapping[str, bool] | None = None,
) -> Markup:
    """Parallel coordinates: an axis for each key and, last, the metric; a line for each group.

    Args:
        keys: labels of the swept keys.
        metric: name of the metric.
        rows: mark, settings in the order of ``keys``, and mean of each group; the line of a group
            without a mean ends before the last axis.
        log_scales: by key, whether its scale is logarithmic; the values decide for other keys.
    """
    css = "parallel many" if len(keys) > MAX_NARROW_AXES else "parallel"
    spacing = max(790 / len(keys), 120)
    width, height = 64 + spacing * len(keys) + 80, 360
    axis_top, axis_bottom = 34.0, height - 18.0
    axes = [
        _Axis(
            [settings[k] for _, settings, _ in rows],
            axis_bottom,
            axis_top,
            (log_scales or {}).get(key),
        )
        for k, key in enumerate(keys)
    ]
    means = [mean for _, _, mean in rows if mean is not None]
    metric_axis = _Axis(list(means), axis_bottom, axis_top, log_scale=False) if means else None
    parts = ['<g class="lines">']
    for mark, settings, mean in sorted(rows, key=lambda each: each[0].shade or -1.0):
        points = [(64 + spacing * k, axis(settings[k])) for k, axis in enumerate(axes)]
        if mean is not None and metric_axis is not None:
            points.append((64 + spacing * len(keys), metric_axis(mean)))
        path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
        for (x0, y0), (x1, y1) in pairwise(points):
            middle = (x0 + x1) / 2
            path += f"C{middle:.1f} {y0:.1f} {middle:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
        parts.append(
            f'{mark.opening}<path class="curve" d="{path}"/><title>{escape(mark.name)}</title></g>'
        )
    parts.append("</g>")
    named_axes = [*zip(keys, axes, strict=True), *([(metric, metric_axis)] if metric_axis else [])]
    for number, (name, axis) in enumerate(named_axes):
        x = 64 + spacing * number
        parts.append(line("axis", x, axis_top, x, axis_bottom))
        parts.append(svg_text("label", x, 16, shortened(name, 19), "middle"))
        for y, text in axis.ticks(int(min(spacing / 8, 48))):
            parts.append(line("axis", x - 3, y, x + 3, y))
            parts.append(svg_text("tick halo", x + 7, y + 3.5, text))
    return svg("Settings and metric of each group of runs", width, height, parts, css=css)


class _Axis:
    """Numbers on a scale, with missing values below it; or text and booleans at even distances.

    Args:
        values: of all lines.
        start: lower end in pixels.
        end: upper end in pixels.
        log_scale: whether the scale is logarithmic; None to decide by the numbers.
    """

    def __init__(
        self, values: Sequence[Setting], start: float, end: float, log_scale: bool | None = None
    ) -> None:
        distinct = distinct_settings(values)
        numbers = [
            float(value)
            for value in distinct
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        ]
        self.start = start
        self.named = distinct
        self.index_of = {setting_order(value): number for number, value in enumerate(distinct)}
        self.scale: Scale | None = None
        self.even = Scale(-0.5, len(distinct) - 0.5, start, end)
        if not numbers or len(numbers) + (None in distinct) < len(distinct):
            return
        self.numbers = numbers
        self.log = numbers[0] > 0 and (_fits_log_scale(numbers) if log_scale is None else log_scale)
        low, high = self._to_scale(numbers[0]), self._to_scale(numbers[-1])
        if high == low:
            low, high = low - 0.5, high + 0.5
        self.scale = Scale(low, high, start - (30 if None in distinct else 0), end)

    def _to_scale(self, number: float) -> float:
        return math.log10(number) if self.log else number

    def __call__(self, value: Setting) -> float:
        if self.scale is None:
            return self.even(self.index_of[setting_order(value)])
        if value is None:
            return self.start
        return self.scale(self._to_scale(float(value)))

    def ticks(self, max_characters: int) -> Iterator[tuple[float, str]]:
        """Yield positions and labels; text labels have at most ``max_characters`` characters."""
        if self.scale is None:
            step = math.ceil(len(self.named) / 16)
            for index in range(0, len(self.named), step):
                value = self.named[index]
                text = (
                    "–" if value is None else without_middle(format_setting(value), max_characters)
                )
                yield self.even(index), text
            return
        if None in self.named:
            yield self.start, "–"
        positions = [self(number) for number in self.numbers]
        gaps = [below - above for below, above in pairwise(positions)]
        if len(positions) <= MAX_NAMED_VALUES and min(gaps, default=MIN_GAP) >= MIN_GAP:
            yield from zip(positions, map(format_setting, map(setting, self.numbers)), strict=True)
            return
        low, high = self.scale.low, self.scale.high
        if not self.log:
            ticks = [tick for tick in _ticks(low, high, 5) if low <= tick <= high]
            yield from ((self.scale(tick), _format_tick(tick, ticks)) for tick in ticks)
            return
        for tick in _log_ticks(low, high):
            yield self.scale(math.log10(tick)), f"{tick:.6g}"


def _fits_log_scale(numbers: Sequence[float]) -> bool:
    """Whether ascending positive numbers suit a logarithmic scale better than a linear one."""
    ratio = numbers[-1] / numbers[0]
    if len(numbers) < 3 or ratio < MIN_EVEN_LOG_RATIO:
        return False  # with two numbers, both scales look the same
    logs = list(map(math.log, numbers))
    return ratio >= MIN_LOG_RATIO or _gap_variation(logs) < _gap_variation(numbers)


def _gap_variation(numbers: Sequence[float]) -> float:
    """Coefficient of variation of the gaps between ascending numbers."""
    gaps = [above - below for below, above in pairwise(numbers)]
    return statistics.pstdev(gaps) / statistics.fmean(gaps)


def _log_ticks(low: float, high: float) -> Iterator[float]:
    """Yield round numbers whose base-10 logarithms lie in [low, high]; fewer for a wide range."""
    decades = range(math.floor(low), math.floor(high + 1e-9) + 1)
    steps = (1,) if len(decades) > 4 else (1, 2, 5)
    for decade in decades:
        for step in steps:
            if low - 1e-9 <= decade + math.log10(step) <= high + 1e-9:
                yield step * 10.0**decade


def _axis_range(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis: of all values, except high outliers that would flatten the rest."""
    if not values:
        return 0.0, 1.0
    sorted_values = sorted(values)
    low, high = sorted_values[0], sorted_values[-1]
    percentile_95 = sorted_values[int(0.95 * (len(sorted_values) - 1))]
    if high - low > 5 * (percentile_95 - low) > 0:
        high = low + 1.3 * (percentile_95 - low)
    if high == low:
        margin = abs(high) * 0.05 or 0.5
        return low - margin, high + margin
    return low, high


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` evenly spaced round numbers that cover [low, high]."""
    raw_step = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw_step))
    step = next(
        multiple * magnitude
        for multiple in (1, 2, 5, 10)
        if multiple * magnitude >= raw_step * 0.999
    )
    first_index, last_index = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first_index, last_index + 1)]


def _integer_ticks(low: float, high: float) -> list[int]:
    step = max(round(_ticks(0, max(high - low, 1), 6)[1]), 1)
    first = math.ceil(low / step) * step
    ticks = [*range(first, int(high) + 1, step)]
    return ticks if step == 1 or low % step == 0 else [math.ceil(low), *ticks]


def _format_tick(tick: float, ticks: Sequence[float]) -> str:
    step = abs(ticks[1] - ticks[0]) if len(ticks) > 1 else abs(tick) or 1.0
    if max(map(abs, ticks)) >= 1e5 or step < 1e-6:
        return f"{tick:.3g}"
    return f"{tick:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}".replace("-", "−")
