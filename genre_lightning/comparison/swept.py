"""In which settings runs differ, and which runs are scored on the same movies."""

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
#: Settings that mean with this value what they mean with null.
AS_NULL = {"data.genre_separator": SEPARATOR}
#: Follows from what a run monitors.
MODE = "monitor_mode"


def with_paths_alike(runs: Sequence[Run]) -> list[Run]:
    """The runs with one path for one place, however and from wherever it was written.

    It is the shortest that was written, or, where another run meant another place by it, the whole.
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
    """Keys in which the runs differ, the seed left out.

    Config groups come first ("model"), then what command lines name, then the rest.

    A choice of a group changes many keys at once (``model=title`` all of ``model.poster``). Such
    keys are left out unless a command line names them.
    """
    settings = [{**run.settings, **run.choices} for run in runs]
    # Where a run has no config, a key that it does not name may still have any value.
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
    """A swept key's value in a run; None where it has none."""
    return run.choices[key] if key in run.choices else run.settings.get(key)


def setting_order(value: Setting) -> tuple[int, float, str]:
    """Sorts settings: numbers by size, then text, what is not set last."""
    if isinstance(value, (bool, str)):
        return 1, 0.0, str(value)
    return (2, 0.0, "") if value is None else (0, float(value), "")


def distinct_settings(values: Iterable[Setting]) -> list[Setting]:
    """Each of them once, in order; True is no 1, as it would be in a set."""
    return [value for _, value in sorted({setting_order(value): value for value in values}.items())]


def _comparable(value: Setting) -> object:
    """A setting as a key of a set or dict, where True is no 1."""
    return type(value) is bool, value


def _tells_data(key: str) -> bool:
    """Whether a setting says which movies, genres and splits there are."""
    group, _, name = key.partition(".")
    same = key in SAME_MOVIES or name.startswith("_") or changes_no_result(key)
    return group == "data" and name != "" and not same


def number_datasets(runs: Sequence[Run]) -> tuple[dict[Path, int], list[str]]:
    """Which runs are scored on the same movies.

    Runs are on the same movies as far as their settings tell. A setting that some of them lack,
    older ones perhaps, counts only where the others differ in it. ``data.test_fraction`` counts
    only where it changes what runs learn from: a dataset that names its test split leaves it out.

    Args:
        runs: as :func:`with_paths_alike` gives them.

    Returns:
        A number for each run by its folder, the same for runs on the same movies; and the settings
        of the data in which runs differ.
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
    """A setting of the data; None where it says what None says."""
    return None if value == AS_NULL.get(key) else value
