"""Further text columns for any dataset, from a CSV file with an ``id`` column."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from genre_lightning.cells import text_of
from genre_lightning.movies.movie import DataError, MovieSet, without_empty
from genre_lightning.movies.table import read_table

#: Column names that already have a meaning in a dataset.
RESERVED = ("title", "poster", "genres", "split")


def join_columns(movie_set: MovieSet, path: str | Path) -> MovieSet:
    """Add the columns of a CSV to the movies that it names by ``id``.

    A movie without a row, or with an empty cell, lacks the column. Rows of movies that the dataset
    does not have are counted in the result's ``notes``.

    Raises:
        DataError: the file can't be read; it lacks the column ``id`` or any other column; the
            dataset already has one of its columns; an id is empty or repeated; no id is in the
            dataset; or it numbers movies from 0 or 1 while the dataset's ids are row numbers.
    """
    path = Path(path).expanduser()
    columns, rows = read_table(path, ("id",))
    added = [name for name in columns if name != "id"]
    if not added:
        raise DataError(f"{path.name}:1: there is no column besides id, so nothing to join")
    taken = {*RESERVED, *movie_set.columns()}
    for name in added:
        if name in taken:
            raise DataError(
                f"{path.name}:1: the dataset has a column {name!r} already; rename this one"
            )
    by_id: dict[str, dict[str, str]] = {}
    first: dict[str, str] = {}
    for row in rows:
        cells = dict(row.cells)
        movie_id = cells.pop("id")
        if not movie_id:
            raise DataError(f"{row.where}, column id: empty")
        if movie_id in by_id:
            raise DataError(
                f"{row.where}, column id: {movie_id!r} is already the id at {first[movie_id]}"
            )
        by_id[movie_id] = {name: text_of(name, cell) for name, cell in cells.items()}
        first[movie_id] = row.where
    movies = [
        replace(movie, columns={**movie.columns, **without_empty(by_id.pop(movie.id, {}))})
        for movie in movie_set.movies
    ]
    if len(by_id) == len(first):
        example = next(iter(by_id), "none")
        raise DataError(
            f"{path.name}: none of its {len(first):,} ids is in the dataset, whose first id is "
            f"{movie_set.movies[0].id!r}; the first here is {example!r}"
        )
    movie_set.check_not_counted({movie_id: f"{first[movie_id]}, column id" for movie_id in by_id})
    notes = movie_set.notes
    if by_id:
        number = len(by_id)
        notes = (
            *notes,
            f"{path.name}: {number:,} row{'s are' if number > 1 else ' is'} of movies that the "
            f"dataset does not have, first {first[next(iter(by_id))]}: left out",
        )
    return replace(movie_set, movies=movies, notes=notes)
