"""Find the settings in which runs differ, and the runs that are scored on the same movies."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from genre_lightning.cells import SEPARATOR
from genre_lightning.comparison.run import Run, Setting
from genre_lightning.runs.settings import changes_no_result, is_path

SEED = "seed"
#: Settings of the data that change neither the movies that are scored nor their genres.
SAME_MOVIES = ("data.batch_size", "data.columns")
#: Settings for which this value means the same as null.
AS_NULL = {"data.genre_separator": SEPARATOR}
#: Not compared: it follows from what a run monitors.
MODE = "monitor_mode"


def with_paths_alike(runs: Sequence[Run]) -> list[Run]:
    """Give each file or folder the same path in all runs, however a run has written it.

    This is the shortest path that was written for it and for nothing else, or else the full path.
    """
    written: dict[tuple[str, str], set[str]] = {}
    meant: dict[tuple[str, str], set[str]] = {}
    places = [
        {
            key: os.path.normpath(os.path.join(run.started_in, os.path.expanduser(value)))
            for key, value in run.settings.items()
            if is_path(key) and isinstance(value, str)
        }
        for run in runs
    ]
    for run, found in zip(runs, places, strict=True):
        for key, place in found.items():
            value = str(run.settings[key])
            written.setdefault((key, place), set()).add(value)
            meant.setdefault((key, value), set()).add(place)

    def shown(key: str, place: str) -> str:
        own = [value for value in written[key, place] if len(meant[key, value]) == 1]
        return min(own, key=lambda value: (len(value), value), default=place)

    return [
        replace(run, settings={**run.settings, **{key: shown(key, found[key]) for key in found}})
        for run, found in zip(runs, places, strict=True)
    ]


def swept_keys(runs: Sequence[Run]) -> list[str]:
    """Keys in which the runs differ, without the seed.

    Config groups come first ("model"), then keys named on command lines, then the rest.

    The choice of a group changes many keys at once (``model=title`` all of ``model.poster``). Such
    keys are left out unless a command line names them.
    """
    settings = [{**run.settings, **run.choices} for run in runs]
    # In a run without a config, a key that it does not name can have any value.
    complete = [each for each, run in zip(settings, runs, strict=True) if run.has_config]
    complete = complete or settings
    groups = {key: None for run in runs for key in run.choices}
    names = {key: None for each in settings for key in each}
    named = {key for run in runs for key in run.overridden}

    def differs(key: str) -> bool:
        values = {_comparable(each[key]) for each in settings if key in each}
        if key in groups:
            return len(values) > 1
        return len(values) > 1 or len({_comparable(each.get(key)) for each in complete}) > 1

    def follows(key: str, choices: Sequence[str]) -> bool:
        """Whether these choices of groups determine the value of a key."""
        by_choice: dict[object, set[object]] = {}
        for each in complete:
            choice = tuple(_comparable(each.get(name)) for name in choices)
            by_choice.setdefault(choice, set()).add(_comparable(each.get(key)))
        return all(len(values) == 1 for values in by_choice.values())

    def is_compared(key: str) -> bool:
        return key not in (SEED, MODE) and not changes_no_result(key)

    different = [key for key in names if is_compared(key) and differs(key)]
    # an experiment chooses for other groups, so it comes first
    first = sorted((key for key in different if key in groups), key=lambda key: key != "experiment")
    choices: list[str] = []
    for key in first:
        if key in named or not (choices and follows(key, choices)):
            choices.append(key)
    rest = [
        key
        for key in different
        if key not in groups and (key in named or not (choices and follows(key, choices)))
    ]
    return [*choices, *sorted(rest, key=lambda key: key not in named)]


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


def _tells_data(key: str) -> bool:
    """Whether a setting determines the movies, genres or splits."""
    group, _, name = key.partition(".")
    same = key in SAME_MOVIES or name.startswith("_") or changes_no_result(key)
    return group == "data" and name != "" and not same


def number_datasets(runs: Sequence[Run]) -> tuple[dict[Path, int], list[str]]:
    """Number the datasets that runs are scored on, as far as their settings tell.

    A setting that some runs lack, perhaps older ones, counts only if the others differ in it.
    ``data.test_fraction`` counts only if it changes the movies that runs learn from: a dataset that
    names its test split ignores it.

    Args:
        runs: from :func:`with_paths_alike`.

    Returns:
        The number of each run's dataset, by folder; and the settings of the data in which runs
        differ.
    """
    shares: dict[str, Setting] = {}

    def as_it_counts(run: Run, key: str, value: Setting) -> Setting:
        movies = run.result.get("learnt_from")
        if key == "data.test_fraction" and isinstance(movies, str):
            return shares.setdefault(movies, value)
        return _as_null(key, value)

    data_settings = [
        {
            key: _comparable(as_it_counts(run, key, value))
            for key, value in run.settings.items()
            if _tells_data(key)
        }
        for run in runs
    ]
    keys = [
        key
        for key in dict.fromkeys(key for each in data_settings for key in each)
        if len({each[key] for each in data_settings if key in each}) > 1
    ]
    numbers: dict[tuple[object, ...], int] = {}
    by_folder = {
        run.folder: numbers.setdefault(tuple(map(each.get, keys)), len(numbers))
        for run, each in zip(runs, data_settings, strict=True)
    }
    return by_folder, keys


def _as_null(key: str, value: Setting) -> Setting:
    """Return a setting of the data, or None if its value means the same."""
    return None if value == AS_NULL.get(key) else value
