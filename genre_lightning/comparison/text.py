"""Runs and numbers in words, the same in the terminal, in Markdown and on the page."""

from __future__ import annotations

from genre_lightning.comparison.ranking import Comparison, Group
from genre_lightning.comparison.run import Run, shown_setting
from genre_lightning.comparison.swept import SEED, setting_of

#: Beyond this a run is called by its folder rather than by its settings.
MAX_KEYS_TOLD = 4


def best_run(group: Group, comparison: Comparison) -> Run:
    """The best run of a group that has a rank."""
    sign = 1 if comparison.mode == "max" else -1
    runs = [run for run in group.runs if run.completed]
    values = [(value, run) for run in runs if (value := run.value(comparison.metric)) is not None]
    return max(values, key=lambda each: sign * each[0])[1]


def data_name(group: Group, comparison: Comparison) -> str:
    """What tells its data from those of others, "data=ml1m"; "" where all are on the same."""
    run = group.named_by
    return " ".join(
        f"{comparison.key_label(key)}={shown_setting(setting_of(run, key))}"
        for key in comparison.data_keys
    )


def describe(run: Run, comparison: Comparison) -> str:
    """What tells a run from the others: "lr=0.001 dropout=0.3 seed=1", or its name."""
    parts = [
        f"{comparison.key_label(key)}={shown_setting(setting_of(run, key))}"
        for key in comparison.keys
    ]
    if comparison.has_spread and run.seed is not None:
        parts.append(f"{SEED}={shown_setting(run.seed)}")
    return run.name if not parts or len(comparison.keys) > MAX_KEYS_TOLD else " ".join(parts)


def group_name(group: Group, comparison: Comparison) -> str:
    """Its settings, "lr 0.001, dropout 0.3"; without any, the name of a run."""
    parts = [
        f"{comparison.key_label(key)} {shown_setting(value)}"
        for key, value in zip(comparison.keys, group.settings, strict=True)
    ]
    return ", ".join(parts) or ("all runs" if len(group.runs) > 1 else group.named_by.name)


def short_name(group: Group, comparison: Comparison) -> str:
    """Its name or, where that is long, the values alone: "0.3 · 0.001 · bce"."""
    if len(comparison.keys) <= 2:
        return group_name(group, comparison)
    if len(comparison.keys) <= MAX_KEYS_TOLD:
        return " · ".join(map(shown_setting, group.settings))
    return group.named_by.name


def shown_value(value: float | None) -> str:
    """A metric as in a table: four decimals; a dash for none."""
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"


def shown_cost(value: float | None) -> str:
    """Tokens or seconds of a movie, to three digits: 1,240, 612, 0.35; a dash for none."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
