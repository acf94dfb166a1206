"""Comparing runs: find what was swept, group runs that differ only by seed, and rank the groups."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from genre_lightning.comparison.run import (
    UNFINISHED,
    Run,
    Setting,
    metric_names,
)
from genre_lightning.comparison.swept import (
    number_datasets,
    setting_of,
    setting_order,
    swept_keys,
    unify_paths,
)
from genre_lightning.errors import UserError
from genre_lightning.runs.settings import usual_mode

#: Costs of a language model's run: names in ``result.json``, and headings.
COSTS = {"tokens_per_movie": "tokens a movie", "seconds_per_movie": "seconds a movie"}


@dataclass(frozen=True)
class Group:
    """Runs that differ only by seed.

    Attributes:
        settings: values of the swept keys, in the order of the keys.
        runs: sorted by seed.
        values: the metric of the completed runs that have it, in the order of ``runs``.
        mean: of the values; None if there are none.
        sd: sample standard deviation of the values; None for fewer than two.
        dataset: number of the dataset that the runs are scored on.
        rank: among groups on the same dataset; 1 is best, ties share a rank; None without a mean.
    """

    settings: tuple[Setting, ...]
    runs: tuple[Run, ...]
    values: tuple[float, ...]
    mean: float | None
    sd: float | None
    dataset: int = 0
    rank: int | None = None

    @property
    def representative(self) -> Run:
        """The run that the group is named by: the first completed one if any, else the first."""
        return next((run for run in self.runs if run.completed), self.runs[0])

    def rank_of(self, run: Run) -> int | None:
        """Return the group's rank; None for a run that is not completed."""
        return self.rank if run.completed else None

    @property
    def status(self) -> str:
        """Status of the first run that is not completed; "completed" if there is none."""
        return next((run.status for run in self.runs if not run.completed), "completed")

    def mean_of(self, metric: str) -> float | None:
        """Mean of another metric over the completed runs that have it."""
        return _mean(run.value(metric) for run in self.runs if run.completed)

    def mean_number(self, name: str) -> float | None:
        """Mean of a number of ``result.json`` over the completed runs that have it."""
        return _mean(run.number(name) for run in self.runs if run.completed)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


@dataclass(frozen=True)
class Comparison:
    """The contents of a leaderboard.

    Attributes:
        runs: all runs, in the order of the groups.
        groups: the ranked ones first. Each dataset has its own ranks.
        keys: swept keys, without the seed.
        data_keys: settings that identify a run's dataset; empty if all runs share one.
        metric: the metric to rank by, such as "val/map_macro".
        mode: "max" if higher is better, "min" if lower is.
        columns: further metrics to show.
        notes: remarks for the reader.
    """

    runs: tuple[Run, ...]
    groups: tuple[Group, ...]
    keys: tuple[str, ...]
    data_keys: tuple[str, ...]
    metric: str
    mode: str
    columns: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def has_spread(self) -> bool:
        """Whether any settings were run more than once."""
        return any(len(group.runs) > 1 for group in self.groups)

    @property
    def best_groups(self) -> list[Group]:
        """The best group on each dataset."""
        best_by_dataset: dict[int, Group] = {}
        for group in self.groups:
            if group.rank is not None:
                best_by_dataset.setdefault(group.dataset, group)
        return list(best_by_dataset.values())

    @property
    def log_scales(self) -> dict[str, bool]:
        """By key that a sweep has drawn from a range, whether the scale was logarithmic."""
        return {key: logs for run in self.runs for key, logs in run.log_scales.items()}

    @property
    def costs(self) -> dict[str, str]:
        """Costs per movie that any run has: names in ``result.json``, and their headings."""
        return {
            name: heading
            for name, heading in COSTS.items()
            if any(run.number(name) is not None for run in self.runs)
        }

    def key_label(self, key: str) -> str:
        """Return the shortest unique ending of a key: "lr" of "optimizer.lr"."""
        parts = key.split(".")
        # "name" and "_target_" mean nothing without the part before them
        min_parts = 2 if parts[-1] in ("name", "_target_") else 1
        for num_parts in range(min_parts, len(parts) + 1):
            label = ".".join(parts[-num_parts:])
            if sum(f".{other}".endswith(f".{label}") for other in self.keys) == 1:
                return label
        return key


def compare_runs(
    runs: Sequence[Run],
    metric: str | None = None,
    mode: str | None = None,
    columns: Sequence[str] = (),
) -> Comparison:
    """Rank runs by a metric of their best epoch.

    Args:
        runs: at least one.
        metric: default: the metric that most runs monitor; a note is added if others differ.
        mode: "max" or "min"; default: ``monitor_mode`` of the runs that monitor the metric, or else
            "min" for a loss and "max" for a score.
        columns: further metrics to show.

    Raises:
        UserError: no run names the metric that it monitors, or none has the requested metric.
    """
    notes = [note for run in runs for note in run.notes]
    if metric is None:
        metric = _monitored_metric(runs, notes)
    elif all(run.value(metric) is None for run in runs):
        raise UserError(_missing_metric_message(metric, runs))
    for name in columns:
        if all(run.value(name) is None for run in runs):
            notes.append(f"The column {name} is empty: {_missing_metric_message(name, runs)}")
    if mode is None:
        mode = _monitored_mode(runs, metric, notes)
    if metric.startswith("test/"):
        notes.append(
            "Ranked by the test split: a run chosen this way is no longer tested by it. "
            "Choose by the validation split."
        )
    runs = unify_paths(runs)
    keys = swept_keys(runs)
    dataset_numbers, data_settings = number_datasets(runs)
    runs_by_settings = _split_by_settings(runs, keys)
    groups = _rank(
        [
            _make_group(keys, tuple(runs_of_group), metric, dataset_numbers)
            for runs_of_group in runs_by_settings
        ],
        mode,
    )
    notes += [
        *_uncertainty_notes(groups),
        *(_movie_count_notes(groups, metric) or _changed_dataset_notes(groups)),
    ]
    data_keys = [key for key in keys if key == "data" or key in data_settings] or data_settings
    if data_settings:
        notes.append(
            f"The runs are on different data ({', '.join(data_keys)}), whose scores can't be "
            "compared: each dataset has its own ranks."
        )
    return Comparison(
        runs=tuple(run for group in groups for run in group.runs),
        groups=tuple(groups),
        keys=tuple(keys),
        data_keys=tuple(data_keys) if data_settings else (),
        metric=metric,
        mode=mode,
        columns=tuple(columns),
        notes=tuple(notes),
    )


def _monitored_metric(runs: Sequence[Run], notes: list[str]) -> str:
    """Return the metric that most runs monitor; add a note if others monitor a different one."""
    monitored = Counter(run.monitor for run in runs if run.monitor)
    if not monitored:
        raise UserError("no run names the metric that it monitors: choose one with --metric NAME")
    metric = monitored.most_common(1)[0][0]
    if len(monitored) > 1:
        counts = ", ".join(f"{name} in {count}" for name, count in monitored.items())
        notes.append(
            f"The runs monitor different values ({counts}); ranked by {metric}. "
            "--metric NAME chooses another."
        )
    return metric


def _monitored_mode(runs: Sequence[Run], metric: str, notes: list[str]) -> str:
    """Return the mode of most runs that monitor the metric; add a note if they disagree."""
    # A run without a value does not count: its settings may have been refused.
    monitoring = [run for run in runs if run.monitor == metric]
    modes = Counter(run.mode for run in monitoring if run.value(metric) is not None)
    mode = modes.most_common(1)[0][0] if modes else usual_mode(metric)
    if len(modes) > 1:
        notes.append(
            f"The runs disagree whether a lower or a higher {metric} is better: {mode} is used."
        )
    return mode


def _missing_metric_message(metric: str, runs: Sequence[Run]) -> str:
    split = "test" if metric.startswith("test/") else "val"
    return f"no run has {metric}; there are: {', '.join(metric_names(runs, split)) or 'none'}"


def _split_by_settings(runs: Sequence[Run], keys: Sequence[str]) -> list[list[Run]]:
    """Split the runs into parts with the same values of these keys, each sorted by seed."""

    def settings_key(run: Run) -> tuple[tuple[int, float, str], ...]:
        return tuple(setting_order(setting_of(run, key)) for key in keys)

    def seed_and_name(run: Run) -> tuple[tuple[int, float, str], str]:
        return setting_order(run.seed), run.name

    sorted_runs = sorted(runs, key=settings_key)
    return [sorted(group, key=seed_and_name) for _, group in groupby(sorted_runs, key=settings_key)]


def _make_group(
    keys: Sequence[str], runs: tuple[Run, ...], metric: str, dataset_numbers: Mapping[Path, int]
) -> Group:
    run_values = [run.value(metric) for run in runs if run.completed]
    values = tuple(value for value in run_values if value is not None)
    return Group(
        settings=tuple(setting_of(runs[0], key) for key in keys),
        runs=runs,
        values=values,
        mean=_mean(values),
        sd=statistics.stdev(values) if len(values) > 1 else None,
        dataset=dataset_numbers[runs[0].folder],
    )


def _rank(groups: Sequence[Group], mode: str) -> list[Group]:
    """Rank the groups, one dataset after another; groups without a mean come last."""
    sign = -1 if mode == "max" else 1
    ranked: list[Group] = []
    for dataset in sorted({group.dataset for group in groups}):
        ranked_here = [
            group for group in groups if group.dataset == dataset and group.mean is not None
        ]
        ranked_here.sort(key=lambda group: sign * (group.mean or 0.0))
        means = [group.mean for group in ranked_here]
        ranked += [replace(group, rank=means.index(group.mean) + 1) for group in ranked_here]
    order = (*UNFINISHED, "completed")
    unranked = sorted((g for g in groups if g.mean is None), key=lambda g: order.index(g.status))
    return [*ranked, *unranked]


def _movie_count_notes(groups: Sequence[Group], metric: str) -> list[str]:
    """Note if the metric is over fewer movies in some runs on the same data."""
    split = metric.partition("/")[0]
    counts_by_dataset = _values_by_dataset(groups, lambda run: run.value(f"{split}/num_movies"))
    return [
        f"{metric} is over {min(counts):,.0f} to {max(counts):,.0f} movies: values over different "
        "movies can't be compared exactly."
        for counts in counts_by_dataset.values()
        if len(counts) > 1
    ]


def _changed_dataset_notes(groups: Sequence[Group]) -> list[str]:
    """Note if the dataset has changed between runs, although its settings and size are the same."""

    def training_hash(run: Run) -> str | None:
        value = run.result.get("learnt_from")
        return value if isinstance(value, str) else None  # the file may be untrusted

    if all(len(hashes) < 2 for hashes in _values_by_dataset(groups, training_hash).values()):
        return []
    return [
        "The movies or their genres have changed between runs: values can't be compared exactly."
    ]


def _values_by_dataset(groups: Sequence[Group], value: Callable[[Run], Any]) -> dict[int, set[Any]]:
    """By dataset, the distinct values of its completed runs, without None."""
    values: dict[int, set[Any]] = {}
    for group in groups:
        group_values = {value(run) for run in group.runs if run.completed} - {None}
        values.setdefault(group.dataset, set()).update(group_values)
    return values


def _uncertainty_notes(groups: Sequence[Group]) -> list[str]:
    """Note means over different numbers of runs, and runs that repeat a seed."""
    notes = []
    sizes = {len(group.values) for group in groups if group.values}
    if len(sizes) > 1:
        notes.append(
            f"Means are over {min(sizes)} to {max(sizes)} runs: those over few are less certain."
        )
    num_repeated = 0
    for group in groups:
        seeds = [run.seed for run in group.runs if run.completed]
        num_repeated += len(seeds) - len(set(seeds))
    if num_repeated:
        repeats = "1 run repeats" if num_repeated == 1 else f"{num_repeated} runs repeat"
        notes.append(f"{repeats} the settings and the seed of another.")
    return notes
