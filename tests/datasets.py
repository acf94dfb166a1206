"""Movies for tests."""

from __future__ import annotations

from typing import Any

from genre_lightning.movies.movie import Movie, PosterFile


def poster_of(movie: Movie) -> PosterFile | None:
    """Where a movie's poster lies; None for one without."""
    poster = movie.value("poster")
    assert poster is None or isinstance(poster, PosterFile)
    return poster


def movie(**changes: Any) -> Movie:
    """A movie that can be trained on, but for the changes; `title` and `poster` are columns."""
    columns = {"title": "Heat (1995)", **changes.pop("columns", {})}
    for name in ("title", "poster"):
        if name in changes:
            columns[name] = changes.pop(name)
    fields = {"id": "1", "genres": ("Action",), "split": None, "where": "movies.dat:1"}
    return Movie(columns=columns, **{**fields, **changes})
