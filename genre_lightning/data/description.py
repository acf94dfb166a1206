"""Where the movies came from, as plain data stored in a checkpoint."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from genre_lightning.cells import SEPARATOR
from genre_lightning.movies.movie import DataError
from genre_lightning.movies.readers import GENERATED_FOLDER_OPTION, READERS

#: Options that are paths.
PATHS = ("root", "path", "columns")
#: Options that a checkpoint does not record and must not set: it can't start a download.
NOT_DESCRIBED = ("download",)
_DEFAULT_SEPARATOR = ("genre_separator", SEPARATOR)


def expand_path(name: str, value: Any) -> Any:
    """An option's value, with ~ expanded if it is a path."""
    return str(Path(value).expanduser()) if name in PATHS and value is not None else value


def describe_source(reader: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data from which :func:`read_source` finds the same movies.

    Args:
        reader: name of the reader.
        options: the reader's options and ``columns``; None for an option that is not set.
    """
    source = {name: value for name, value in options.items() if value is not None}
    for key in PATHS:
        if key in source:
            source[key] = _absolute(Path(source[key]))
    for key in NOT_DESCRIBED:
        source.pop(key, None)
    source.pop(GENERATED_FOLDER_OPTION.get(reader, ""), None)
    return {"reader": reader, **source}


def _absolute(path: Path) -> str:
    """An absolute path without "..", through the same links: posters lie beside a linked CSV."""
    absolute = path.absolute()
    normal = Path(os.path.normpath(absolute))
    return str(normal if normal.resolve() == absolute.resolve() else absolute)


def _linked_path(value: Any) -> Any:
    """Where a path's links lead; anything that is no path, as in an untrusted file, unchanged."""
    return os.path.realpath(value) if isinstance(value, str) and "\0" not in value else value


def same_source(
    source: Mapping[str, Any], other: Mapping[str, Any], *, ignore: Collection[str] = ()
) -> bool:
    """Whether two descriptions name the same movies, genres and splits.

    The default genre separator counts the same as none, and paths to the same file are equal. The
    folder of generated movies, which earlier versions described, is ignored.

    Args:
        source: a description from :func:`describe_source`, with split settings.
        other: likewise.
        ignore: names that are not compared.
    """
    first, second = (
        {
            name: _linked_path(value) if name in PATHS else value
            for name, value in description.items()
            if name not in ignore
            and (name, value) != _DEFAULT_SEPARATOR
            and name != GENERATED_FOLDER_OPTION.get(description.get("reader", ""))
        }
        for description in (source, other)
    )
    return first == second


def read_source(
    description: Mapping[str, Any], defaults: Mapping[str, Any], cache_dir: str | Path
) -> dict[str, Any]:
    """The reader and the options of a description that may be untrusted.

    Args:
        description: what :func:`describe_source` returned, and values for ``defaults``.
        defaults: further options that ``description`` may set, with their default values.
        cache_dir: where demo movies are made, whatever ``description`` says.

    Raises:
        DataError: ``description`` describes no dataset, or one that does not exist.
    """
    source = dict(description)
    reader = source.pop("reader", None)
    if reader not in READERS:
        raise DataError(f"the checkpoint's dataset is of an unknown kind, {reader!r:.100}")
    folder_option = GENERATED_FOLDER_OPTION.get(reader)
    if folder_option is not None:  # generated again here, wherever training had generated them
        source[folder_option] = str(cache_dir)
    parameters = inspect.signature(READERS[reader]).parameters
    known_defaults = {
        **defaults,
        **{name: parameter.default for name, parameter in parameters.items()},
    }
    for name, value in source.items():
        default = known_defaults.get(name)
        expected_type = type(default) if isinstance(default, (bool, int, float)) else str
        has_expected_type = type(value) is expected_type or (
            expected_type is float and type(value) is int
        )
        if name not in known_defaults or name in NOT_DESCRIBED or not has_expected_type:
            raise DataError(
                f"the checkpoint's dataset has an option {name!r:.100} that no {reader} has"
            )
        if name in PATHS and name != folder_option and not _exists(value):
            raise DataError(
                f"the checkpoint was trained on movies at {value:.500}, where there are none; "
                f"say where they are: data={reader} data.{name}=..."
            )
    return {"reader": reader, **source}


def _exists(path: str) -> bool:
    """Whether a path names a file or a folder, not a device or a pipe that never ends."""
    try:
        return Path(path).is_file() or Path(path).is_dir()
    except (OSError, ValueError):  # too long, or with a character that no path can have
        return False
