"""leaderboard.html: one self-contained file with the ranked table and the charts of all runs."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup

from genre_lightning.comparison import charts
from genre_lightning.comparison.charts import Mark
from genre_lightning.comparison.ranking import Comparison, Group
from genre_lightning.comparison.run import Run, Setting, format_setting
from genre_lightning.comparison.swept import distinct_settings, setting_of, setting_order
from genre_lightning.comparison.text import (
    MAX_NAMED_KEYS,
    data_name,
    describe,
    format_cost,
    format_value,
    group_name,
    numeric_keys,
    short_name,
)
from genre_lightning.page.document import render_page
from genre_lightning.wording import counted, format_duration

#: Most rows in the chart of the spread.
MAX_SPREAD_ROWS = 40
#: Most buttons below the curves.
MAX_CURVE_BUTTONS = 12
#: A heat map with more rows or columns is hard to read.
MAX_MAP_SIDE = 14


@dataclass(frozen=True)
class HeatMap:
    """Groups arranged by two settings.

    Attributes:
        row_key, column_key: labels of the settings.
        columns: values of the second setting.
        rows: each value of the first setting, with the number of the group in each column, or None
            for a combination that was not run.
    """

    row_key: str
    column_key: str
    columns: list[Setting]
    rows: list[tuple[Setting, list[int | None]]]


def render_leaderboard(comparison: Comparison, created: datetime) -> str:
    """Render the page as HTML."""
    shades = group_shades(comparison)
    heat = heat_map(comparison)
    has_several_groups = len(comparison.groups) > 1
    ranked = [group for group in comparison.groups if group.rank is not None]
    counts = Counter(run.status for run in comparison.runs)
    return render_page(
        "genre_lightning.comparison",
        "leaderboard",
        filters={
            "counted": counted,
            "value": format_value,
            "setting": format_setting,
            "time": format_duration,
            "cost": format_cost,
            "seconds_of": _seconds,
            "breakable": _breakable,
        },
        comparison=comparison,
        labels=[comparison.key_label(key) for key in comparison.keys],
        numeric=numeric_keys(comparison),
        names=[group_name(group, comparison) for group in comparison.groups],
        short_names=[short_name(group, comparison) for group in comparison.groups],
        short_head=" · ".join(map(comparison.key_label, comparison.keys))
        if 2 < len(comparison.keys) <= MAX_NAMED_KEYS
        else "",
        shades=shades,
        counts=counts,
        seeds=distinct_settings(run.seed for run in comparison.runs),
        heat=heat,
        parallel=_parallel(comparison, shades)
        if has_several_groups and comparison.keys and not heat
        else None,
        spread=_spread(comparison, ranked, shades) if ranked else None,
        max_spread_rows=MAX_SPREAD_ROWS,
        max_curve_buttons=MAX_CURVE_BUTTONS,
        curves=_curves(comparison, shades),
        unfinished=[run for run in comparison.runs if not run.completed],
        describe=lambda run: describe(run, comparison),
        data_name=lambda group: data_name(group, comparison),
        setting_of=setting_of,
        run_rows=run_rows(comparison),
        seconds=sum(map(_seconds, comparison.runs)),
        made=created.strftime("%Y-%m-%d %H:%M %Z").strip(),
    )


def group_shades(comparison: Comparison) -> list[float | None]:
    """How good each group is, from 0, the worst mean, to 1, the best mean on the same data.

    None for a group without a mean.
    """
    means: dict[int, list[float]] = {}
    for group in comparison.groups:
        if group.mean is not None:
            means.setdefault(group.dataset, []).append(group.mean)

    def shade(group: Group) -> float | None:
        if group.mean is None:
            return None
        low, high = min(means[group.dataset]), max(means[group.dataset])
        shade = 1.0 if low == high else (group.mean - low) / (high - low)
        return shade if comparison.mode == "max" or low == high else 1.0 - shade

    return [shade(group) for group in comparison.groups]


def heat_map(comparison: Comparison) -> HeatMap | None:
    """Arrange groups by exactly two swept keys; None if the grid would be large or sparse."""
    if len(comparison.keys) != 2:
        return None
    rows, columns = (
        distinct_settings(group.settings[k] for group in comparison.groups) for k in (0, 1)
    )
    num_cells = len(rows) * len(columns)
    if max(len(rows), len(columns)) > MAX_MAP_SIDE or 2 * len(comparison.groups) < num_cells:
        return None
    index_of_settings = {
        tuple(map(setting_order, group.settings)): index
        for index, group in enumerate(comparison.groups)
    }

    def group_index(*settings: Setting) -> int | None:
        return index_of_settings.get(tuple(map(setting_order, settings)))

    return HeatMap(
        comparison.key_label(comparison.keys[0]),
        comparison.key_label(comparison.keys[1]),
        columns,
        [(row, [group_index(row, column) for column in columns]) for row in rows],
    )


def _seconds(run: Run) -> float:
    return run.number("seconds") or 0.0


def _breakable(name: str) -> Markup:
    """Let a path break between its settings rather than within one."""
    return Markup("<wbr>").join(re.split(r"(?<=[,/])", name))


def _curves(comparison: Comparison, shades: list[float | None]) -> list[tuple[str, Markup]]:
    runs = [
        (run, Mark(g, run_number, shades[g], describe(run, comparison), run.status))
        for run_number, (g, run) in enumerate(run_rows(comparison))
    ]
    panels: list[tuple[str, Markup]] = []
    for metric in dict.fromkeys([comparison.metric, "val/loss", "train/loss"]):
        series = [(mark, run.curve(metric)) for run, mark in runs]
        if any(points for _, points in series):
            panels.append((metric, charts.curves(metric, series, large=not panels)))
    return panels


def _spread(comparison: Comparison, ranked: list[Group], shades: list[float | None]) -> Markup:
    return charts.spread(
        [
            (Mark(g, None, shades[g], short_name(group, comparison)), group.values)
            for g, group in enumerate(ranked[:MAX_SPREAD_ROWS])
        ]
    )


def _parallel(comparison: Comparison, shades: list[float | None]) -> Markup:
    return charts.parallel(
        [comparison.key_label(key) for key in comparison.keys],
        comparison.metric,
        [
            (Mark(g, None, shades[g], group_name(group, comparison)), group.settings, group.mean)
            for g, group in enumerate(comparison.groups)
        ],
        {comparison.key_label(key): logs for key, logs in comparison.log_scales.items()},
    )


def run_rows(comparison: Comparison) -> list[tuple[int, Run]]:
    """Return each run with the number of its group, in the order of the groups."""
    return [(g, run) for g, group in enumerate(comparison.groups) for run in group.runs]
