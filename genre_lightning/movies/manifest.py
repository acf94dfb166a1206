"""Reader for your own dataset: a CSV file with one movie per row.

Columns, in any order, identified by the header:

- ``title``
- ``poster`` (optional column): a path relative to the CSV's folder, or empty
- ``genres``: joined by ``|``, as in ``Action|Comedy``, or by ``genre_separator``, or a list in JSON
  or Python syntax; movies without genres are left out
- ``split`` (optional column): train, val, test, or empty to have it assigned
- ``id`` (optional column): unique; without it the row number is the id
- every further column is text that a branch can read, such as ``synopsis``
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from genre_lightning.cells import SEPARATOR, names_in_list, text_of
from genre_lightning.movies.movie import (
    OF_THE_WEB,
    DataError,
    Movie,
    MovieSet,
    PosterFile,
    check_movies,
)
from genre_lightning.movies.split_names import SPLITS
from genre_lightning.movies.table import Row, read_table

REQUIRED = ("title", "genres")
#: Columns that are not text for a branch.
RESERVED = ("genres", "split", "id")
#: Beginning of a list that could not be parsed.
LIST = re.compile(r"\[\s*[\"'{]")
#: Other separators that files use between genres.
OTHER_SEPARATORS = (",", ";", "/")
#: Another separator is assumed if splitting by it gives at most this share of the genres that ours
#: gives,
FEWER_GENRES = 0.75
#: and if the cells with ours are at most this share of the cells with the other.
FEWER_CELLS = 0.1


def read_manifest(path: str | Path, genre_separator: str | None = None) -> MovieSet:
    """Find the movies that a CSV lists; the genres are those that occur in it, sorted.

    A poster whose file does not exist is kept, with ``PosterFile.exists`` False, so that it can be
    reported by name.

    Args:
        path: path of the CSV.
        genre_separator: text between a movie's genres; None for ``|``, after a check that the file
            does not seem to use another separator.

    Raises:
        DataError: the file is missing, is not in UTF-8 or lacks a column; a row can't be used;
            genres seem to be joined by another separator; or two genres differ only in case,
            whitespace or forms of the same characters. Row numbers are those that a spreadsheet
            shows: the header is row 1, and a cell with line breaks stays in one row.
    """
    path = Path(path).expanduser()
    columns, rows = read_table(path, REQUIRED)
    if genre_separator is None:
        _check_separator(rows)
    separator = SEPARATOR if genre_separator is None else _checked_separator(genre_separator)
    movies = [_parse_row(row, path, separator) for row in rows]
    of_the_web = [row for row in rows if OF_THE_WEB.search(row.cells.get("poster", ""))]
    if not movies:
        raise DataError(f"{path.name} has a header but no movies")
    genres = tuple(sorted({g for movie in movies for g in movie.genres}))
    notes = []
    without = [movie for movie in movies if not movie.genres]
    if genres and without:
        movies = [movie for movie in movies if movie.genres]
        notes.append(
            f"{without[0].where}, column genres: empty, so the movie is left out"
            f"{f', the first of {len(without):,}' if len(without) > 1 else ''}"
        )
    if of_the_web:
        first, count = of_the_web[0], len(of_the_web)
        notes.append(
            f"{first.where}, column poster: {first.cells['poster']:.200} is a URL"
            f"{f', the first of {count:,}' if count > 1 else ''}. URLs are not fetched, so these "
            "movies have no poster: download the images, and give the paths of the files"
        )
    movie_set = MovieSet(movies, genres, tuple(notes), ids_are_rows="id" not in columns)
    check_movies(movie_set)
    _check_spelling(movie_set)
    return movie_set


def _check_spelling(movie_set: MovieSet) -> None:
    """Refuse genres that differ only in spelling: they would be learnt and scored as two."""
    spelt: dict[str, str] = {}
    for genre in movie_set.genres:
        other = spelt.setdefault(_as_read(genre), genre)
        if other != genre:
            first, second = (
                next(movie.where for movie in movie_set.movies if name in movie.genres)
                for name in (other, genre)
            )
            raise DataError(
                f"{second}, column genres: {genre!r} is {other!r} at {first}: spell both alike"
            )


def _as_read(genre: str) -> str:
    """A genre with its case, whitespace and forms of characters (full or half width) normalised."""
    return " ".join(unicodedata.normalize("NFKC", genre).casefold().split())


def _checked_separator(given: Any) -> str:
    if isinstance(given, str) and given:
        return given
    raise DataError(
        f"data.genre_separator={given} must be text that separates genres, such as {SEPARATOR}"
    )


def _check_separator(rows: Sequence[Row]) -> None:
    """Refuse genres that seem to be joined by another separator than ``|``.

    The name of a genre can contain a comma or a slash. But if such a character joins genres,
    splitting by it leaves far fewer distinct genres.
    """
    different = {row.cells["genres"] for row in rows}

    def found(separator: str) -> tuple[set[str], list[Row]]:
        genres = {g for cell in different for g in _split_genres(cell, separator)}
        return genres, [row for row in rows if separator in row.cells["genres"]]

    ours, our_rows = found(SEPARATOR)
    # Many names contain spaces, so a space is only considered if there is no other candidate.
    there = [mark for mark in OTHER_SEPARATORS if any(mark in cell for cell in different)]
    others = {separator: found(separator) for separator in there or " "}
    best = min(others, key=lambda separator: len(others[separator][0]))
    genres, joined = others[best]
    fewer = len(genres) <= FEWER_GENRES * len(ours)
    if not joined or not fewer or len(our_rows) > FEWER_CELLS * len(joined):
        return
    more = f" and {len(joined) - 1:,} more" if len(joined) > 1 else ""
    raise DataError(
        f"{joined[0].where}, column genres: {joined[0].cells['genres']!r:.80}{more}: "
        f"genres seem to be joined by {best!r} here, not by {SEPARATOR!r}. Split them there "
        f"with \"data.genre_separator='{best}'\" ({len(genres):,} genres instead of "
        f"{len(ours):,}), or keep them as they are with \"data.genre_separator='{SEPARATOR}'\""
    )


@lru_cache(maxsize=100_000)  # many movies have the same genres
def _split_genres(cell: str, separator: str) -> tuple[str, ...]:
    names = names_in_list(cell)
    # Spaces around a separator don't count (", " is the same as ","), unless it is only spaces.
    # NFC, since macOS writes an accent as a separate character.
    parts = (
        text_of("genres", cell).split(separator.strip() or separator) if names is None else names
    )
    genres = (unicodedata.normalize("NFC", part).strip() for part in parts)
    return tuple(genre for genre in genres if genre)


def _parse_row(row: Row, manifest: Path, separator: str) -> Movie:
    cells = row.cells
    split = cells.get("split", "").lower() or None
    if split is not None and split not in SPLITS:
        raise DataError(
            f"{row.where}, column split: {cells['split']!r} is none of {', '.join(SPLITS)} "
            "(or empty)"
        )
    columns: dict[str, str | PosterFile] = {
        name: text
        for name, cell in cells.items()
        if name not in (*RESERVED, "poster") and (text := text_of(name, cell))
    }
    poster = text_of("poster", cells.get("poster", ""))
    if poster and not OF_THE_WEB.search(poster):
        columns["poster"] = PosterFile.at(manifest.parent / poster)
    genres = _split_genres(cells["genres"], separator)
    if genres and LIST.match(genres[0]):
        raise DataError(
            f"{row.where}, column genres: {cells['genres']!r:.80} begins like a list but can't be "
            f"read as one; write its genres joined by {SEPARATOR}, as in Action|Comedy"
        )
    return Movie(
        id=cells.get("id", str(row.number)),
        columns=columns,
        genres=genres,
        split=split,
        where=row.where,
    )
