"""Further text columns for any dataset, from a CSV file with an ``id`` column."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from genre_lightning.cells import text_of
from genre_lightning.movies.movie import DataError, MovieSet, without_empty
from genre_lightning.movies.table import Row, read_table

#: Columns of a dataset's own file that hold no texts.
NO_TEXTS = ("poster", "split")


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
    _check_new_columns(path.name, [name for name in columns if name != "id"], movie_set)
    by_id, where_of_id = _texts_by_id(rows)
    movies = [
        replace(movie, columns={**movie.columns, **without_empty(by_id.pop(movie.id, {}))})
        for movie in movie_set.movies
    ]
    if len(by_id) == len(where_of_id):
        example = next(iter(by_id), "none")
        raise DataError(
            f"{path.name}: none of its {len(where_of_id):,} ids is in the dataset, whose first id "
            f"is {movie_set.movies[0].id!r}; the first here is {example!r}"
        )
    movie_set.check_id_numbering(
        {movie_id: f"{where_of_id[movie_id]}, column id" for movie_id in by_id}
    )
    notes = movie_set.notes
    if by_id:
        count = len(by_id)
        notes = (
            *notes,
            f"{path.name}: {count:,} row{'s are' if count > 1 else ' is'} of movies that "
            f"the dataset does not have, first {where_of_id[next(iter(by_id))]}: left out",
        )
    return replace(movie_set, movies=movies, notes=notes)


def _check_new_columns(file: str, new_columns: Sequence[str], movie_set: MovieSet) -> None:
    """Refuse columns that hold no texts, or that the dataset already has."""
    if not new_columns:
        raise DataError(f"{file}:1: there is no column besides id, so nothing to join")
    existing_columns = {"title", "genres", *movie_set.columns()}
    if any(movie.split for movie in movie_set.movies):
        existing_columns.add("split")
    for name in new_columns:
        if name in existing_columns:
            raise DataError(f"{file}:1: the dataset has a column {name!r} already; rename this one")
        if name in NO_TEXTS:
            raise DataError(
                f"{file}:1: data.columns adds texts; put the column {name!r} into the dataset's "
                "own file, or rename this one if it is a text"
            )


def _texts_by_id(rows: Iterable[Row]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return each row's texts by column, and its place for messages, both by the movie's id."""
    texts: dict[str, dict[str, str]] = {}
    where_of_id: dict[str, str] = {}
    for row in rows:
        cells = dict(row.cells)
        movie_id = cells.pop("id")
        if not movie_id:
            raise DataError(f"{row.where}, column id: empty")
        if movie_id in texts:
            raise DataError(
                f"{row.where}, column id: {movie_id!r} is already the id at {where_of_id[movie_id]}"
            )
        texts[movie_id] = {name: text_of(name, cell) for name, cell in cells.items()}
        where_of_id[movie_id] = row.where
    return texts, where_of_id
