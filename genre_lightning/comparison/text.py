"""Displayed names and numbers of runs, the same in the terminal, in Markdown and on the page."""

from __future__ import annotations

from genre_lightning.comparison.ranking import Comparison, Group
from genre_lightning.comparison.run import Run, format_setting
from genre_lightning.comparison.swept import SEED_KEY, setting_of

#: With more swept keys, a run is named by its folder instead of its settings.
MAX_NAMED_KEYS = 4


def best_run(group: Group, comparison: Comparison) -> Run:
    """Return the best run of a ranked group."""
    sign = 1 if comparison.mode == "max" else -1
    runs = [run for run in group.runs if run.completed]
    values = [(value, run) for run in runs if (value := run.value(comparison.metric)) is not None]
    return max(values, key=lambda value_and_run: sign * value_and_run[0])[1]


def data_name(group: Group, comparison: Comparison) -> str:
    """Name a group's dataset by the settings that differ, "data=ml1m"; "" if all share one."""
    run = group.representative
    return " ".join(
        f"{comparison.key_label(key)}={format_setting(setting_of(run, key))}"
        for key in comparison.data_keys
    )


def describe(run: Run, comparison: Comparison) -> str:
    """Name a run by the settings that differ, "lr=0.001 dropout=0.3 seed=1", or by its folder."""
    parts = [
        f"{comparison.key_label(key)}={format_setting(setting_of(run, key))}"
        for key in comparison.keys
    ]
    if comparison.has_spread and run.seed is not None:
        parts.append(f"{SEED_KEY}={format_setting(run.seed)}")
    return run.name if not parts or len(comparison.keys) > MAX_NAMED_KEYS else " ".join(parts)


def group_name(group: Group, comparison: Comparison) -> str:
    """Name a group by its settings, "lr 0.001, dropout 0.3"; else "all runs", or its only run."""
    parts = [
        f"{comparison.key_label(key)} {format_setting(value)}"
        for key, value in zip(comparison.keys, group.settings, strict=True)
    ]
    return ", ".join(parts) or ("all runs" if len(group.runs) > 1 else group.representative.name)


def short_name(group: Group, comparison: Comparison) -> str:
    """Short name of a group: for many keys the values "0.3 · 0.001 · bce", or a run's name."""
    if len(comparison.keys) <= 2:
        return group_name(group, comparison)
    if len(comparison.keys) <= MAX_NAMED_KEYS:
        return " · ".join(map(format_setting, group.settings))
    return group.representative.name


def numeric_keys(comparison: Comparison) -> list[bool]:
    """For each swept key, whether its values are numbers, or null."""
    return [
        not any(isinstance(group.settings[k], (bool, str)) for group in comparison.groups)
        for k in range(len(comparison.keys))
    ]


def format_value(value: float | None) -> str:
    """Format a metric for a table: four decimals; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"


def format_cost(value: float | None) -> str:
    """Format the tokens or seconds of a movie: 1,240, 612, 0.35; a dash for None."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
