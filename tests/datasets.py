"""Movies for tests."""

from __future__ import annotations

from typing import Any

from genre_lightning.movies.movie import Movie, PosterFile


def poster_of(movie: Movie) -> PosterFile | None:
    """The poster file of a movie; None for a movie without a poster."""
    poster = movie.value("poster")
    assert poster is None or isinstance(poster, PosterFile)
    return poster


def movie(**changes: Any) -> Movie:
    """A valid movie with some fields changed; `title` and `poster` change these columns."""
    columns = {"title": "Heat (1995)", **changes.pop("columns", {})}
    for name in ("title", "poster"):
        if name in changes:
            columns[name] = changes.pop(name)
    fields = {"id": "1", "genres": ("Action",), "split": None, "where": "movies.dat:1"}
    return Movie(columns=columns, **{**fields, **changes})
