"""What every reader returns, movies with their columns and genres, and how it is checked.

Readers only locate files and never open an image: a :class:`PosterFile` says where a poster's bytes
are, and its size and stamp fingerprint them without reading them.
"""

from __future__ import annotations

import lzma
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PureWindowsPath

import numpy as np

from genre_lightning.errors import UserError
from genre_lightning.movies.split_names import SPLITS
from genre_lightning.wording import first_of

#: What reading a damaged zip raises, besides OSError (from bzip2). RuntimeError means an encrypted
#: entry, its subclass NotImplementedError an unknown compression method.
DAMAGED_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    OverflowError,
)
#: A poster that is a URL, not a file. Converting a URL to a path removes one of its slashes.
URL_PATTERN = re.compile(r"(^|/)https?:/", re.IGNORECASE)


class DataError(UserError, ValueError):
    """A dataset that can't be used; the message names file, row, column, and what to do."""


@lru_cache(maxsize=4)
def _open_zip(path: Path, process: int, size: int, modified: int) -> zipfile.ZipFile:
    """One open archive per process and per version of the file.

    The archive's directory is then parsed once, not once per poster. Threads can share the archive,
    since ``ZipFile`` guards its file position with a lock. Processes can't (a forked process shares
    the position but not the lock), hence the process id.
    """
    return zipfile.ZipFile(path)


@dataclass(frozen=True, slots=True)
class PosterFile:
    """Where a poster's bytes are: a file, or a member of a zip archive.

    Create it with :meth:`at` for a file, and from its fields for a member.

    Attributes:
        path: the file itself, or the archive that holds ``member``.
        member: name inside the archive, or None for a plain file.
        size: bytes (uncompressed for a member); -1 if the dataset names a file that does not exist.
        stamp: changes when the content does: ``st_mtime_ns`` of a file, CRC-32 of a member.
    """

    path: Path
    member: str | None
    size: int
    stamp: int

    @classmethod
    def at(cls, path: Path) -> PosterFile:
        """The poster in a plain file; ``exists`` is False if there is no such file."""
        try:
            status = path.stat()
        except (OSError, ValueError):  # ValueError: a NUL in the name
            return cls(path, None, -1, 0)
        if not stat.S_ISREG(status.st_mode):
            return cls(path, None, -1, 0)
        return cls(path, None, status.st_size, status.st_mtime_ns)

    @property
    def name(self) -> str:
        """The poster's name in messages."""
        return str(self.path) if self.member is None else f"{self.path}:{self.member}"

    @property
    def exists(self) -> bool:
        """False if the file did not exist when the dataset was read."""
        return self.size >= 0

    def read_bytes(self) -> bytes:
        """The encoded image. Safe to call from several threads and processes at once.

        Raises:
            OSError: the file is gone or unreadable, or the archive or this member is damaged.
        """
        if self.member is None:
            return self.path.read_bytes()
        status = self.path.stat()
        try:
            archive = _open_zip(self.path, os.getpid(), status.st_size, status.st_mtime_ns)
            return archive.read(self.member)
        except KeyError:
            raise FileNotFoundError(f"{self.name}: no such member in the archive") from None
        except DAMAGED_ZIP as error:
            raise OSError(f"{self.name}: {error!s:.300}") from error


def poster_path(folder: Path, text: str) -> Path:
    """Path of a poster that a table in this folder names, with slashes or Windows's backslashes."""
    path = folder / text
    # Elsewhere a backslash can be part of a file's name.
    is_posix = "\\" not in text or os.path.exists(path)
    return path if is_posix else folder / PureWindowsPath(text).as_posix()


@dataclass(frozen=True, slots=True)
class Movie:
    """One movie as described by the dataset.

    Attributes:
        id: unique within the dataset.
        columns: values by column: ``title``, as written ("Godfather, The (1972)"), ``poster``, and
            any other text. Columns that the movie lacks are left out.
        genres: at least one, each of them in ``MovieSet.genres``.
        split: "train", "val", "test", or None if it is still to be assigned.
        where: place in the dataset's files, for messages, e.g. ``"movies_train.dat:17"``.
    """

    id: str
    columns: Mapping[str, str | PosterFile]
    genres: tuple[str, ...]
    split: str | None
    where: str

    @property
    def title(self) -> str:
        """The title; "" for a movie without one."""
        title = self.columns.get("title", "")
        return title if isinstance(title, str) else ""

    def value(self, column: str) -> str | PosterFile | None:
        """The value of a column; None if the movie lacks it. The column "id" is the movie's id."""
        return self.id if column == "id" else self.columns.get(column)


def without_empty(
    columns: Mapping[str, str | PosterFile | None],
) -> dict[str, str | PosterFile]:
    """The columns of a movie that are not empty."""
    return {name: value for name, value in columns.items() if value is not None and value != ""}


@dataclass(frozen=True)
class MovieSet:
    """All movies of a dataset, and its genres in label order.

    Column g of every label array is ``genres[g]``. What
    :func:`genre_lightning.movies.readers.read_movies` returns has passed :func:`check_movies`.

    Attributes:
        notes: sentences to show before training.
        ids_are_rows: whether movie ids are row numbers, since the dataset has no ids.
    """

    movies: list[Movie]
    genres: tuple[str, ...]
    notes: tuple[str, ...] = ()
    ids_are_rows: bool = False

    def columns(self) -> tuple[str, ...]:
        """The columns that at least one movie has, ``title`` and ``poster`` first."""
        names = {name for movie in self.movies for name in movie.columns}
        return tuple(sorted(names, key=lambda name: (name != "title", name != "poster", name)))

    def check_id_numbering(self, unknown: Mapping[str, str]) -> None:
        """Refuse a file that numbers movies from 0 or 1 if the dataset's ids are row numbers.

        Args:
            unknown: ids in the file that no movie has, with their places for messages.

        Raises:
            DataError: the file's rows would be joined to the wrong movies.
        """
        if self.ids_are_rows and (positions := {"0", "1"} & unknown.keys()):
            raise DataError(
                f"{unknown[min(positions)]}: the dataset has no column id, so the ids of its "
                f"movies are row numbers, from {self.movies[0].id} on, and {min(positions)} is "
                "none of them: the rows would be joined to the wrong movies. Add a column id to "
                "both files"
            )


def encode_genres(movies: Sequence[Movie], genres: Sequence[str]) -> np.ndarray:
    """Multi-hot labels, (N, G) uint8: 1 where movie n has ``genres[g]``.

    Raises:
        DataError: a movie has a genre that is not among ``genres``.
    """
    column = {genre: g for g, genre in enumerate(genres)}
    labels = np.zeros((len(movies), len(genres)), dtype=np.uint8)
    for row, movie in enumerate(movies):
        for genre in movie.genres:
            if genre not in column:
                raise _unknown_genre(movie, genre, genres)
            labels[row, column[genre]] = 1
    return labels


def check_movies(movie_set: MovieSet) -> None:
    """Refuse a dataset that can't be trained on, naming file, row and column.

    Raises:
        DataError: no movies, no genres, a genre listed twice or with an invisible character; a
            movie without id, title or genres, with an unknown genre or split, with a value that is
            no text, or with the id of an earlier one.
    """
    if not movie_set.movies:
        raise DataError("the dataset has no movies")
    for movie in movie_set.movies:  # first, since readers can collect the genres from the movies
        if not movie.genres:
            raise DataError(
                f"{movie.where}, column genres: empty; each movie needs at least one genre"
            )
    _check_genres(movie_set)
    known_genres = set(movie_set.genres)
    first_with: dict[str, str] = {}
    for movie in movie_set.movies:
        if not movie.id.strip():
            raise DataError(f"{movie.where}, column id: empty")
        if movie.id in first_with:
            repeated = len(movie_set.movies) - len({each.id for each in movie_set.movies})
            raise DataError(
                f"{movie.where}, column id: {movie.id!r} is already the id at "
                f"{first_with[movie.id]}{first_of(repeated)}; give each movie its own id, or "
                "remove the row"
            )
        first_with[movie.id] = movie.where
        _check_values(movie, movie_set, known_genres)


def _check_genres(movie_set: MovieSet) -> None:
    """Refuse a list of genres that is empty, or has an unusable name or a name twice."""
    genres = movie_set.genres
    if not genres:
        raise DataError("the dataset has no genres, so there is nothing to learn")
    for genre in genres:
        if not genre.strip():
            raise DataError("the dataset's list of genres has an empty name")
        if not genre.isprintable():  # a checkpoint would refuse the name, after hours of training
            hidden = next(each for each in genre if not each.isprintable())
            where = next((m.where for m in movie_set.movies if genre in m.genres), "the dataset")
            raise DataError(
                f"{where}, column genres: {genre!r} has an invisible character "
                f"(U+{ord(hidden):04X}); remove it, or replace it with a plain space"
            )
    if len(set(genres)) < len(genres):
        twice = sorted({genre for genre in genres if genres.count(genre) > 1})
        raise DataError(f"the dataset lists a genre more than once: {', '.join(twice)}")


def _check_values(movie: Movie, movie_set: MovieSet, known_genres: Set[str]) -> None:
    """Refuse a movie whose columns, title, genres or split can't be used."""
    for column, value in movie.columns.items():
        if not isinstance(value, (str, PosterFile)):
            raise DataError(
                f"{movie.where}, column {column}: of type {type(value).__name__}, not a text; "
                "a column that a movie lacks is left out"
            )
    if not movie.title.strip():
        untitled = sum(not each.title.strip() for each in movie_set.movies)
        raise DataError(
            f"{movie.where}, column title: empty{first_of(untitled)}; give each movie a "
            "title, or remove the row"
        )
    for genre in movie.genres:
        if genre not in known_genres:
            raise _unknown_genre(movie, genre, movie_set.genres)
    if movie.split is not None and movie.split not in SPLITS:
        raise DataError(
            f"{movie.where}, column split: {movie.split!r} is none of {', '.join(SPLITS)} "
            "(or empty)"
        )


def _unknown_genre(movie: Movie, genre: str, genres: Sequence[str]) -> DataError:
    return DataError(
        f"{movie.where}, column genres: unknown genre {genre!r}; "
        f"the dataset's genres are {', '.join(genres)}"
    )
