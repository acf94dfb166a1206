"""Reader for a dataset of one's own: a CSV file with one movie per row.

Columns, in any order, found by the header:

- ``title``
- ``poster``: a path relative to the CSV's folder, or empty for a movie without one
- ``genres``: joined by ``|``
- ``split`` (optional column): train, val, test, or empty to have it assigned
- ``id`` (optional column): unique; without it the row number is the id
- every further column is text that a branch can look at, such as ``synopsis``
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from genre_lightning.movies.movie import (
    SPLITS,
    DataError,
    Movie,
    MovieSet,
    PosterFile,
    check_movies,
    without_empty,
)
from genre_lightning.movies.table import Row, read_table

REQUIRED = ("title", "poster", "genres")
#: Columns that are no text for a branch.
RESERVED = ("genres", "split", "id")


def read_manifest(path: str | Path) -> MovieSet:
    """Find the movies that a CSV lists; the genres are those that occur in it, sorted.

    A poster that is named but not there is kept, with ``PosterFile.exists`` False, so that it can
    be listed by name.

    Raises:
        DataError: no file, another encoding than UTF-8, a column missing in the header, or a row
            that can't be used. Row numbers are those a spreadsheet shows: the header is row 1, and
            a cell with line breaks in it is still in one row.
    """
    path = Path(path).expanduser()
    _, rows = read_table(path, REQUIRED)
    movies = [_parse_row(row, path) for row in rows]
    if not movies:
        raise DataError(f"{path.name} has a header but no movies")
    movie_set = MovieSet(movies, tuple(sorted({g for movie in movies for g in movie.genres})))
    check_movies(movie_set)
    return movie_set


def _parse_row(row: Row, manifest: Path) -> Movie:
    cells = row.cells
    split = cells.get("split", "").lower() or None
    if split is not None and split not in SPLITS:
        raise DataError(
            f"{row.where}, column split: {cells['split']!r} is none of {', '.join(SPLITS)} "
            "(or empty)"
        )
    columns: dict[str, str | PosterFile | None] = {
        name: text for name, text in cells.items() if name not in RESERVED
    }
    columns["poster"] = _find_poster(manifest.parent, cells["poster"]) if cells["poster"] else None
    return Movie(
        id=cells.get("id", str(row.number)),
        columns=without_empty(columns),
        genres=tuple(genre.strip() for genre in cells["genres"].split("|") if genre.strip()),
        split=split,
        where=row.where,
    )


def _find_poster(folder: Path, name: str) -> PosterFile:
    path = folder / name
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return PosterFile(path, None, -1, 0)
    if not stat.S_ISREG(status.st_mode):
        return PosterFile(path, None, -1, 0)
    return PosterFile(path, None, status.st_size, status.st_mtime_ns)
