"""Where the movies came from, as plain data that a checkpoint takes along."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from genre_lightning.cells import SEPARATOR
from genre_lightning.movies.movie import DataError
from genre_lightning.movies.readers import MADE_IN, READERS

#: Options that are paths.
PATHS = ("root", "path", "columns")
#: Options that a checkpoint does not tell and must not: it can't start a download.
NOT_DESCRIBED = ("download",)
_USUAL_SEPARATOR = ("genre_separator", SEPARATOR)


def expanded(name: str, value: Any) -> Any:
    """An option, with ~ written out where it is a path."""
    return str(Path(value).expanduser()) if name in PATHS and value is not None else value


def describe_source(reader: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data from which :func:`read_source` finds the same movies.

    Args:
        reader: its name.
        options: what it takes, and ``columns``; None for an option that is not set.
    """
    source = {name: value for name, value in options.items() if value is not None}
    for key in PATHS:
        if key in source:
            source[key] = str(Path(source[key]).resolve())
    for key in NOT_DESCRIBED:
        source.pop(key, None)
    source.pop(MADE_IN.get(reader, ""), None)
    return {"reader": reader, **source}


def same_source(
    one: Mapping[str, Any], other: Mapping[str, Any], *, apart_from: Collection[str] = ()
) -> bool:
    """Whether two descriptions are of the same movies, genres and splits, as far as they tell.

    The usual separator of genres is what is meant where none is named. Earlier versions described
    the folder of movies that are made.

    Args:
        one: of :func:`describe_source`, with settings of the split.
        other: likewise.
        apart_from: names that are not compared.
    """
    first, second = (
        {
            name: value
            for name, value in description.items()
            if name not in apart_from
            and (name, value) != _USUAL_SEPARATOR
            and name != MADE_IN.get(description.get("reader", ""))
        }
        for description in (one, other)
    )
    return first == second


def read_source(
    description: Mapping[str, Any], defaults: Mapping[str, Any], cache_dir: str | Path
) -> dict[str, Any]:
    """The reader and the options of a description that may be untrusted.

    Args:
        description: what :func:`describe_source` gave, and values of ``defaults``.
        defaults: further options that it may have, with what they are if it does not tell.
        cache_dir: where demo movies are made, whatever it says.

    Raises:
        DataError: it describes no dataset, or one that isn't there.
    """
    source = dict(description)
    reader = source.pop("reader", None)
    if reader not in READERS:
        raise DataError(f"the checkpoint's dataset is of an unknown kind, {reader!r:.100}")
    made_in = MADE_IN.get(reader)
    if made_in is not None:  # made here, wherever they were made then
        source[made_in] = str(cache_dir)
    parameters = inspect.signature(READERS[reader]).parameters
    known = {**defaults, **{name: parameter.default for name, parameter in parameters.items()}}
    for name, value in source.items():
        default = known.get(name)
        wanted = type(default) if isinstance(default, (bool, int, float)) else str
        fits = type(value) is wanted or (wanted is float and type(value) is int)
        if name not in known or name in NOT_DESCRIBED or not fits:
            raise DataError(
                f"the checkpoint's dataset has an option {name!r:.100} that no {reader} has"
            )
        if name in PATHS and name != made_in and not _is_there(value):
            raise DataError(
                f"the checkpoint was trained on movies at {value:.500}, where there are none; "
                f"say where they are: data={reader} data.{name}=..."
            )
    return {"reader": reader, **source}


def _is_there(place: str) -> bool:
    """Whether a path names a file or a folder, not a device or a pipe that never ends."""
    try:
        return Path(place).is_file() or Path(place).is_dir()
    except (OSError, ValueError):  # too long, or with a character that no path has
        return False
