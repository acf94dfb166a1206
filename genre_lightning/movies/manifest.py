"""Reader for a dataset of one's own: a CSV file with one movie per row.

Columns, in any order, found by the header (others are ignored):

- ``title``
- ``poster``: a path relative to the CSV's folder, or empty for a movie without one
- ``genres``: joined by ``|``
- ``split`` (optional column): train, val, test, or empty to have it assigned
- ``id`` (optional column): unique; without it the row number is the id
"""

from __future__ import annotations

import csv
import io
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
)

REQUIRED = ("title", "poster", "genres")
OPTIONAL = ("split", "id")


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
    movies = [
        _parse_row(cells, number, where, path)
        for number, where, cells in _rows(_read_text(path), path.name)
    ]
    if not movies:
        raise DataError(f"{path.name} has a header but no movies")
    movie_set = MovieSet(movies, tuple(sorted({g for movie in movies for g in movie.genres})))
    check_movies(movie_set)
    return movie_set


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"can't read the manifest {path}: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path.name} is not UTF-8 (line {line}, byte {data[error.start]:#04x}); "
            "save it as UTF-8"
        ) from error


def _rows(text: str, name: str) -> list[tuple[int, str, dict[str, str]]]:
    """(row number, where, cells by column) of each row that is not blank."""
    # strict: an unclosed quote is an error, instead of one cell that swallows the rest of the file.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, str, dict[str, str]]] = []
    columns: list[str] = []
    number = 0
    try:
        for number, cells in enumerate(reader, start=1):
            cells = [cell.strip() for cell in cells]
            if number == 1:
                columns = _check_header(cells, name)
                continue
            if not any(cells):
                continue
            where = f"{name}:{number}"
            if reader.line_num != number:  # for those who look at it in a text editor
                where += f" (line {reader.line_num})"
            if len(cells) != len(columns):
                raise DataError(
                    f"{where}: {len(cells)} cells, but the header has {len(columns)}; "
                    'a cell with a comma in it needs quotes: "Godfather, The (1972)"'
                )
            rows.append((number, where, dict(zip(columns, cells, strict=True))))
    except csv.Error as error:
        raise DataError(f"{name}:{number + 1} (line {reader.line_num}): {error}") from error
    if not columns:
        raise DataError(f"{name} is empty; its first row must be {','.join(REQUIRED)}")
    return rows


def _check_header(cells: list[str], name: str) -> list[str]:
    columns = [cell.lower() for cell in cells]
    for column in (*REQUIRED, *OPTIONAL):
        if columns.count(column) > 1:
            raise DataError(f"{name}:1: the column {column!r} comes more than once")
    missing = [column for column in REQUIRED if column not in columns]
    if missing:
        hint = ""
        if len(columns) == 1 and (";" in columns[0] or "\t" in columns[0]):
            hint = "; columns are separated by commas"
        raise DataError(
            f"{name}:1: the header has no column {' and no '.join(missing)}; "
            f"it has {', '.join(cells) or 'none'}{hint}"
        )
    return columns


def _parse_row(cells: dict[str, str], number: int, where: str, manifest: Path) -> Movie:
    split = cells.get("split", "").lower() or None
    if split is not None and split not in SPLITS:
        raise DataError(
            f"{where}, column split: {cells['split']!r} is none of {', '.join(SPLITS)} (or empty)"
        )
    return Movie(
        id=cells.get("id", str(number)),
        title=cells["title"],
        poster=_find_poster(manifest.parent, cells["poster"]) if cells["poster"] else None,
        genres=tuple(genre.strip() for genre in cells["genres"].split("|") if genre.strip()),
        split=split,
        where=where,
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
