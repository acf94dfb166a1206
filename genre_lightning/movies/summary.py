"""The dataset table to look at before training, with notes on problems of the data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from genre_lightning.movies.movie import Movie, MovieSet, PosterFile
from genre_lightning.wording import first_few

STATES = ("present", "missing", "unreadable")
#: Held-out movies that repeat one of train are reported from this share on. Fewer hardly change a
#: score, and can match by chance, as some demo movies do.
MIN_DUPLICATE_SHARE = 0.01
#: Maximum number of genres, or of columns, that a sentence names.
MAX_NAMED = 5


@dataclass(frozen=True)
class DatasetTable:
    """Counts per split; each tuple is in the order of ``splits``.

    Attributes:
        splits: names of the splits.
        movies: number of movies in each split.
        columns: (column, state) to movies in each split; state is one of ``STATES``.
        genres: (genre, movies in each split), in label order.
    """

    splits: tuple[str, ...]
    movies: tuple[int, ...]
    columns: dict[tuple[str, str], tuple[int, ...]]
    genres: tuple[tuple[str, tuple[int, ...]], ...]


def column_states(
    movies: Sequence[Movie], column: str, index: np.ndarray | None = None
) -> np.ndarray:
    """Each movie's state of a column, (N,) str: "present", "missing" or "unreadable".

    Args:
        movies: N movies.
        column: name of the column.
        index: (N,) int64, -1 for a value that could not be read; None if values were not opened.
    """
    exists = np.array([_has_value(movie, column) for movie in movies], dtype=bool)
    is_read = exists if index is None else index >= 0
    return np.where(is_read, "present", np.where(exists, "unreadable", "missing"))


def _has_value(movie: Movie, column: str) -> bool:
    value = movie.value(column)
    return value.exists if isinstance(value, PosterFile) else bool(value)


def absent_posters(movies: Sequence[Movie]) -> list[str]:
    """The posters that the dataset names but that do not exist, as ``where: path``.

    If none of several exists, only the first is listed: the folder is probably wrong.
    """
    posters = [
        (f"{movie.where}: {poster.name}", poster.exists)
        for movie in movies
        for poster in movie.columns.values()
        if isinstance(poster, PosterFile)
    ]
    missing = [name for name, exists in posters if not exists]
    if len(missing) == len(posters) > 1:
        return [f"{missing[0]}, nor any other of the {len(posters):,} that the dataset names"]
    return missing


def universal_genre_notes(table: DatasetTable) -> list[str]:
    """A sentence on the genres that every movie of train has, if any."""
    train = table.splits.index("train")
    universal = [
        genre for genre, counts in table.genres if counts[train] == table.movies[train] > 0
    ]
    if not universal:
        return []
    they_are = "it is" if len(universal) == 1 else "they are"
    return [
        f"every movie of train has {_list_genres(universal)}: {they_are} predicted for any movie, "
        "and high scores there mean nothing; add negative examples"
    ]


def unlearnable_genre_notes(table: DatasetTable) -> list[str]:
    """A sentence on the genres that can't be learnt, since no movie of train has them, if any."""
    train = table.splits.index("train")
    unlearnable = [genre for genre, counts in table.genres if not counts[train] and any(counts)]
    if not unlearnable:
        return []
    they = "it" if len(unlearnable) == 1 else "they"
    return [
        f"no movie of train has {_list_genres(unlearnable)}: {they} can't be learnt, which lowers "
        "averages over genres"
    ]


def _list_genres(names: Sequence[str]) -> str:
    """The first of some names in a sentence: "the genre Drama", "the genres Drama, War"."""
    genres = "genre" if len(names) == 1 else "genres"
    return f"the {genres} {first_few(names, MAX_NAMED)}"


def duplicate_movie_notes(movies: Sequence[Movie], splits: Mapping[str, np.ndarray]) -> list[str]:
    """A sentence on held-out movies that also seem to be in train, if there are many.

    A movie with several posters can be in several rows. Rows with the same title and genres are
    taken for one movie; the title alone would match remakes too.
    """
    train_rows = {_movie_key(movies[row]): row for row in reversed(splits["train"])}
    held_out = np.setdiff1d(np.concatenate([splits["val"], splits["test"]]), splits["train"])
    duplicates = [row for row in held_out if _movie_key(movies[row]) in train_rows]
    if not duplicates or len(duplicates) < MIN_DUPLICATE_SHARE * len(held_out):
        return []
    first, original = movies[duplicates[0]], movies[train_rows[_movie_key(movies[duplicates[0]])]]
    verb = "has" if len(duplicates) == 1 else "have"
    return [
        f"{len(duplicates):,} of the {len(held_out):,} held-out movies {verb} the title and genres "
        f"of a movie of train, such as {first.where} and {original.where}: if they are the same "
        "movie, scores are too good. Give all rows of a movie the same split"
    ]


def _movie_key(movie: Movie) -> tuple[str, frozenset[str]]:
    return " ".join(movie.title.casefold().split()), frozenset(movie.genres)


def movie_hashes(movies: Iterable[Movie]) -> np.ndarray:
    """(N,) little-endian int64: hashes of title and genres, by which movies are compared.

    Case and spaces in titles, and the order of genres, do not count.
    """
    digests = []
    for title, genres in map(_movie_key, movies):
        text = repr((title, sorted(genres))).encode("utf-8", "surrogatepass")
        digests.append(hashlib.blake2b(text, digest_size=8).digest())
    return np.frombuffer(b"".join(digests), dtype="<i8")


def dataset_table(
    movie_set: MovieSet,
    splits: Mapping[str, np.ndarray],
    labels: np.ndarray,
    states: Mapping[str, np.ndarray],
) -> DatasetTable:
    """Count movies, columns and genres in each split.

    Args:
        movie_set: N movies, G genres.
        splits: name to row indices.
        labels: (N, G) multi-hot.
        states: by column, (N,) str of ``STATES``.

    Raises:
        ValueError: a state is not one of ``STATES``.
    """
    for column, values in states.items():
        unknown = sorted(set(np.unique(values).tolist()) - set(STATES))
        if unknown:
            raise ValueError(f"{column}: unknown state {unknown[0]!r}; {', '.join(STATES)}")
    rows_of_splits = list(splits.values())
    counts_of_splits = [
        np.asarray(labels[row], dtype=np.int64).sum(axis=0) for row in rows_of_splits
    ]
    return DatasetTable(
        splits=tuple(splits),
        movies=tuple(len(row) for row in rows_of_splits),
        columns={
            (column, state): tuple(int((values[row] == state).sum()) for row in rows_of_splits)
            for column, values in states.items()
            for state in STATES
        },
        genres=tuple(
            (genre, tuple(int(count[g]) for count in counts_of_splits))
            for g, genre in enumerate(movie_set.genres)
        ),
    )


def render_table(table: DatasetTable, title: str = "Dataset") -> Table:
    """Render as a rich table, with a column for each split and one for all.

    Posters get a row for each state; a text only gets one for "missing", if any movie lacks it.
    """
    rendered = Table(title=title, title_justify="left")
    rendered.add_column("")
    for split in (*table.splits, "all"):
        rendered.add_column(split, justify="right")
    lines: list[tuple[str, tuple[int, ...]]] = [("movies", table.movies)]
    for (column, state), counts in table.columns.items():
        if column == "poster":
            lines.append((f"posters {state}", counts))
        elif state == "missing" and any(counts):
            lines.append((f"without {column}", counts))
    for position, (name, counts) in enumerate(lines):
        ends = position in (0, len(lines) - 1)
        rendered.add_row(name, *(f"{n:,}" for n in (*counts, sum(counts))), end_section=ends)
    for genre, counts in table.genres:
        rendered.add_row(genre, *(f"{n:,}" for n in (*counts, sum(counts))))
    return rendered
