"""The table of readers.

To add a dataset, write a function that returns a MovieSet (movie.py describes its contents) and
list it here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from genre_lightning.garbage import without_garbage_collection
from genre_lightning.movies.demo import read_demo
from genre_lightning.movies.manifest import read_manifest
from genre_lightning.movies.ml1m import read_ml1m
from genre_lightning.movies.mmimdb import read_mmimdb
from genre_lightning.movies.movie import DataError, MovieSet, check_movies

READERS: dict[str, Callable[..., MovieSet]] = {
    "demo": read_demo,
    "ml1m": read_ml1m,
    "manifest": read_manifest,
    "mmimdb": read_mmimdb,
}

#: Readers that generate their movies, the same everywhere, and the option that names the folder.
GENERATED_FOLDER_OPTION = {"demo": "root"}

#: Biases that a model takes over from a dataset, for its model card. A user's own dataset has no
#: entry.
BIASES: dict[str, str] = {
    "demo": "Its movies are generated: titles and posters follow rules that real movies do not "
    "follow, so the scores say nothing about real movies.",
    "ml1m": "MovieLens-1M holds the movies that users of a website in the United States rated "
    "around 2000: titles in English, mostly American and popular movies, none newer. Its genres "
    "are those of the website, and a movie's year is part of its title.",
    "mmimdb": "MM-IMDb holds the movies of MovieLens for which IMDb has a poster and a plot: "
    "mostly American and popular movies, with texts in English. Its genres are IMDb's.",
}


def read_movies(reader: str, **options: Any) -> MovieSet:
    """Find the movies of a dataset by a reader's name and options.

    Raises:
        DataError: the reader or an option is unknown, a required option is missing, the reader
            refuses the dataset, or :func:`check_movies` does.
    """
    if reader not in READERS:
        raise DataError(f"there is no reader {reader!r}; choose from {', '.join(READERS)}")
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
    with without_garbage_collection():
        movie_set: Any = read(**options)
    if not isinstance(movie_set, MovieSet):
        raise DataError(f"the reader {reader} returned a {type(movie_set).__name__}, no MovieSet")
    check_movies(movie_set)
    return movie_set
