"""The readers by name.

To add a dataset, write a function that returns a MovieSet (see movie.py for what it must hold, and
``check_movies`` for the end of it) and list it here.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from genre_lightning.movies.demo import read_demo
from genre_lightning.movies.manifest import read_manifest
from genre_lightning.movies.ml1m import read_ml1m
from genre_lightning.movies.mmimdb import read_mmimdb
from genre_lightning.movies.movie import DataError, MovieSet

READERS: dict[str, Callable[..., MovieSet]] = {
    "demo": read_demo,
    "ml1m": read_ml1m,
    "manifest": read_manifest,
    "mmimdb": read_mmimdb,
}


def read_movies(reader: str, **options: Any) -> MovieSet:
    """Find the movies of a dataset with the reader of that name and its options.

    Raises:
        DataError: there is no such reader or option, or one that it needs is not given; and all
            that the reader itself refuses.
    """
    if reader not in READERS:
        raise DataError(f"there is no reader {reader!r}; there is {', '.join(READERS)}")
    read = READERS[reader]
    parameters = inspect.signature(read).parameters
    for name in options:
        if name not in parameters:
            raise DataError(
                f"the reader {reader} has no option {name!r}; it has {', '.join(parameters)}"
            )
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and options.get(name) is None:
            raise DataError(f"the reader {reader} needs the option {name!r}, e.g. data.{name}=...")
    with _not_collecting():
        return read(**options)


@contextmanager
def _not_collecting() -> Iterator[None]:
    """Without looks for objects that are of no use any more: all that a reader makes is kept.

    Of a million movies those looks take half of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
