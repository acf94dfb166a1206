"""Find the settings in which runs differ, and the runs that are scored on the same movies."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from genre_lightning.cells import SEPARATOR
from genre_lightning.comparison.run import Run, Setting
from genre_lightning.runs.settings import changes_no_result, is_path

SEED_KEY = "seed"
#: Settings of the data that change neither the movies that are scored nor their genres.
NON_DATASET_KEYS = ("data.batch_size", "data.columns")
#: Settings for which this value means the same as null.
NULL_EQUIVALENTS = {"data.genre_separator": SEPARATOR}
#: Not compared: it follows from what a run monitors.
MODE_KEY = "monitor_mode"


def unify_paths(runs: Sequence[Run]) -> list[Run]:
    """Give each file or folder the same path in all runs, however a run has written it.

    This is the shortest path that was written for it and for nothing else, or else the full path.
    """
    spellings: dict[tuple[str, str], set[str]] = {}
    paths_of_spelling: dict[tuple[str, str], set[str]] = {}
    paths_of_runs = [
        {
            key: os.path.normpath(os.path.join(run.working_dir, os.path.expanduser(value)))
            for key, value in run.settings.items()
            if is_path(key) and isinstance(value, str)
        }
        for run in runs
    ]
    for run, paths in zip(runs, paths_of_runs, strict=True):
        for key, path in paths.items():
            value = str(run.settings[key])
            spellings.setdefault((key, path), set()).add(value)
            paths_of_spelling.setdefault((key, value), set()).add(path)

    def shortest_unique(key: str, path: str) -> str:
        unambiguous = [
            value for value in spellings[key, path] if len(paths_of_spelling[key, value]) == 1
        ]
        return min(unambiguous, key=lambda value: (len(value), value), default=path)

    return [
        replace(
            run,
            settings={**run.settings, **{key: shortest_unique(key, paths[key]) for key in paths}},
        )
        for run, paths in zip(runs, paths_of_runs, strict=True)
    ]


def swept_keys(runs: Sequence[Run]) -> list[str]:
    """Keys in which the runs differ, without the seed.

    Config groups come first ("model"), then keys named on command lines, then the rest.

    The choice of a group changes many keys at once (``model=title`` all of ``model.poster``). Such
    keys are left out unless a command line names them.
    """
    settings = [{**run.settings, **run.choices} for run in runs]
    # In a run without a config, a key that it does not name can have any value.
    complete_settings = [
        run_settings for run_settings, run in zip(settings, runs, strict=True) if run.has_config
    ]
    complete_settings = complete_settings or settings
    groups = {key: None for run in runs for key in run.choices}
    keys = {key: None for run_settings in settings for key in run_settings}
    overridden = {key for run in runs for key in run.overridden}

    def has_several_values(key: str) -> bool:
        values = {
            _comparable(run_settings[key]) for run_settings in settings if key in run_settings
        }
        if len(values) > 1 or key in groups:
            return len(values) > 1
        return len({_comparable(run_settings.get(key)) for run_settings in complete_settings}) > 1

    def is_determined_by(key: str, choices: Sequence[str]) -> bool:
        """Whether these choices of groups determine the value of a key."""
        by_choice: dict[object, set[object]] = {}
        for run_settings in complete_settings:
            choice = tuple(_comparable(run_settings.get(name)) for name in choices)
            by_choice.setdefault(choice, set()).add(_comparable(run_settings.get(key)))
        return all(len(values) == 1 for values in by_choice.values())

    def is_compared(key: str) -> bool:
        return key not in (SEED_KEY, MODE_KEY) and not changes_no_result(key)

    differing = [key for key in keys if is_compared(key) and has_several_values(key)]
    # An experiment chooses for other groups, so it comes first.
    group_keys = sorted(
        (key for key in differing if key in groups), key=lambda key: key != "experiment"
    )
    choices: list[str] = []

    def follows(key: str) -> bool:
        """Whether a key differs only since the choices of groups do."""
        return key not in overridden and bool(choices) and is_determined_by(key, choices)

    for key in group_keys:
        if not follows(key):
            choices.append(key)
    rest = [key for key in differing if key not in groups and not follows(key)]
    return [*choices, *sorted(rest, key=lambda key: key not in overridden)]


def setting_of(run: Run, key: str) -> Setting:
    """Return the value of a swept key in a run; None if it has none."""
    return run.choices[key] if key in run.choices else run.settings.get(key)


def setting_order(value: Setting) -> tuple[int, float, str]:
    """Sort key of a setting: numbers by size, then booleans and text, then None."""
    if isinstance(value, (bool, str)):
        return 1, 0.0, str(value)
    return (2, 0.0, "") if value is None else (0, float(value), "")


def distinct_settings(values: Iterable[Setting]) -> list[Setting]:
    """Return the distinct settings in order; True and 1 are distinct, unlike in a set."""
    return [value for _, value in sorted({setting_order(value): value for value in values}.items())]


def _comparable(value: Setting) -> object:
    """A setting as a key of a set or dict, in which True and 1 are distinct."""
    return type(value) is bool, value


def _identifies_dataset(key: str) -> bool:
    """Whether a setting determines the movies, genres or splits."""
    group, _, name = key.partition(".")
    keeps_dataset = key in NON_DATASET_KEYS or name.startswith("_") or changes_no_result(key)
    return group == "data" and name != "" and not keeps_dataset


def number_datasets(runs: Sequence[Run]) -> tuple[dict[Path, int], list[str]]:
    """Number the datasets that runs are scored on, as far as their settings tell.

    A setting that some runs lack, perhaps older ones, counts only if the others differ in it.
    ``data.test_fraction`` counts only if it changes the movies that runs learn from: a dataset that
    names its test split ignores it.

    Args:
        runs: from :func:`unify_paths`.

    Returns:
        The number of each run's dataset, by folder; and the settings of the data in which runs
        differ.
    """
    first_fractions: dict[str, Setting] = {}

    def effective_value(run: Run, key: str, value: Setting) -> Setting:
        training_hash = run.result.get("learnt_from")
        if key == "data.test_fraction" and isinstance(training_hash, str):
            return first_fractions.setdefault(training_hash, value)
        return _null_if_equivalent(key, value)

    data_settings = [
        {
            key: _comparable(effective_value(run, key, value))
            for key, value in run.settings.items()
            if _identifies_dataset(key)
        }
        for run in runs
    ]
    keys = [
        key
        for key in dict.fromkeys(key for settings in data_settings for key in settings)
        if len({settings[key] for settings in data_settings if key in settings}) > 1
    ]
    dataset_numbers: dict[tuple[object, ...], int] = {}
    number_of_folder = {
        run.folder: dataset_numbers.setdefault(tuple(map(settings.get, keys)), len(dataset_numbers))
        for run, settings in zip(runs, data_settings, strict=True)
    }
    return number_of_folder, keys


def _null_if_equivalent(key: str, value: Setting) -> Setting:
    """Return a setting of the data, or None if its value means the same."""
    return None if value == NULL_EQUIVALENTS.get(key) else value
