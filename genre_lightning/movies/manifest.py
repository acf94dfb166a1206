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
    URL_PATTERN,
    DataError,
    Movie,
    MovieSet,
    PosterFile,
    poster_path,
)
from genre_lightning.movies.split_names import SPLITS
from genre_lightning.movies.table import Row, read_table
from genre_lightning.wording import first_of

REQUIRED = ("title", "genres")
#: Columns that are not text for a branch.
RESERVED = frozenset({"genres", "split", "id", "poster"})
#: Beginning of a list that could not be parsed.
LIST_START = re.compile(r"\[\s*[\"'{]")
#: A cell in which another program has written a list: {Action,Comedy}, ('Action',), c("Action").
OTHER_LIST = re.compile(r"(c?\(.*\)|\{.*\}|\[.*\])", re.DOTALL)
#: Other separators that files use between genres.
OTHER_SEPARATORS = (",", ";", "/", "&", "•", "·")
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
        _check_lists(rows)
        _check_separator(rows)
    separator = SEPARATOR if genre_separator is None else _validated_separator(genre_separator)
    movies = [_parse_row(row, path, separator) for row in rows]
    url_rows = [row for row in rows if URL_PATTERN.search(row.cells.get("poster", ""))]
    if not movies:
        raise DataError(f"{path.name} has a header but no movies")
    genres = tuple(sorted({g for movie in movies for g in movie.genres}))
    notes = []
    unlabelled = [movie for movie in movies if not movie.genres]
    if genres and unlabelled:
        movies = [movie for movie in movies if movie.genres]
        notes.append(
            f"{unlabelled[0].where}, column genres: empty, so the movie is left out"
            f"{first_of(len(unlabelled))}"
        )
    if url_rows:
        first = url_rows[0]
        notes.append(
            f"{first.where}, column poster: {first.cells['poster']:.200} is a URL"
            f"{first_of(len(url_rows))}. URLs are not fetched, so these "
            "movies have no poster: download the images, and give the paths of the files"
        )
    movie_set = MovieSet(movies, genres, tuple(notes), ids_are_rows="id" not in columns)
    _check_spelling(movie_set)
    return movie_set


def _check_spelling(movie_set: MovieSet) -> None:
    """Refuse genres that differ only in spelling: they would be learnt and scored as two."""
    first_spelling: dict[str, str] = {}
    for genre in movie_set.genres:
        other = first_spelling.setdefault(_normalized_genre(genre), genre)
        if other != genre:
            first, second = (
                next(movie.where for movie in movie_set.movies if name in movie.genres)
                for name in (other, genre)
            )
            raise DataError(
                f"{second}, column genres: {genre!r} is {other!r} at {first}: spell both alike"
            )


def _normalized_genre(genre: str) -> str:
    """A genre with its case, whitespace and forms of characters (full or half width) normalised."""
    return " ".join(unicodedata.normalize("NFKC", genre).casefold().split())


def _validated_separator(separator: Any) -> str:
    if isinstance(separator, str) and separator:
        return separator
    raise DataError(
        f"data.genre_separator={separator} must be text that separates genres, such as {SEPARATOR}"
    )


def _check_lists(rows: Sequence[Row]) -> None:
    """Refuse genres if most cells are lists that another program has written and we can't read."""
    distinct_cells = {row.cells["genres"] for row in rows}
    lists = {
        cell
        for cell in distinct_cells
        if OTHER_LIST.fullmatch(cell) and SEPARATOR not in cell and names_in_list(cell) is None
    }
    if len(lists) > len(distinct_cells) / 2 and any("," in cell for cell in lists):
        row = next(row for row in rows if row.cells["genres"] in lists)
        raise DataError(_unreadable_list(row.where, row.cells["genres"]))


def _check_separator(rows: Sequence[Row]) -> None:
    """Refuse genres that seem to be joined by another separator than ``|``.

    The name of a genre can contain a comma or a slash. But if such a character joins genres,
    splitting by it leaves far fewer distinct genres.
    """
    distinct_cells = {row.cells["genres"] for row in rows}

    def num_genres(separator: str) -> int:
        return len({g for cell in distinct_cells for g in _split_genres(cell, separator)})

    found = [other for other in OTHER_SEPARATORS if any(other in cell for cell in distinct_cells)]
    # Many names contain spaces, so a space is only considered if there is no other candidate.
    best = min(found or [" "], key=num_genres)
    joined_rows = [row for row in rows if best in row.cells["genres"]]
    num_default_rows = sum(SEPARATOR in row.cells["genres"] for row in rows)
    if not joined_rows or num_default_rows > FEWER_CELLS * len(joined_rows):
        return
    fewer, default = num_genres(best), num_genres(SEPARATOR)
    if fewer > FEWER_GENRES * default:
        return
    cell = joined_rows[0].cells["genres"]
    more = f" and {len(joined_rows) - 1:,} more" if len(joined_rows) > 1 else ""
    raise DataError(
        f"{joined_rows[0].where}, column genres: {cell!r:.80}{more}: "
        f"genres seem to be joined by {best!r} here, not by {SEPARATOR!r}. Split them there "
        f"with \"data.genre_separator='{best}'\" ({fewer:,} genres instead of "
        f"{default:,}), or keep them as they are with "
        f"\"data.genre_separator='{SEPARATOR}'\""
    )


def _unreadable_list(where: str, cell: str) -> str:
    return (
        f"{where}, column genres: {cell!r:.80} begins like a list but can't be read as one; write "
        f"its genres joined by {SEPARATOR}, as in Action|Comedy"
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
    split = text_of("split", cells.get("split", "")).lower() or None
    if split is not None and split not in SPLITS:
        raise DataError(
            f"{row.where}, column split: {cells['split']!r} is none of {', '.join(SPLITS)} "
            "(or empty)"
        )
    columns: dict[str, str | PosterFile] = {
        name: text
        for name, cell in cells.items()
        if name not in RESERVED and (text := text_of(name, cell))
    }
    poster = text_of("poster", cells.get("poster", ""))
    if poster and not URL_PATTERN.search(poster):
        columns["poster"] = PosterFile.at(poster_path(manifest.parent, poster))
    genres = _split_genres(cells["genres"], separator)
    if genres and LIST_START.match(genres[0]):
        raise DataError(_unreadable_list(row.where, cells["genres"]))
    return Movie(
        id=cells.get("id", str(row.number)),
        columns=columns,
        genres=genres,
        split=split,
        where=row.where,
    )
