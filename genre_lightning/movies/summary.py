"""The one table to look at before training: what there is, split by split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from genre_lightning.movies.movie import Movie, MovieSet

POSTER_STATES = ("present", "missing", "unreadable")


@dataclass(frozen=True)
class DatasetTable:
    """Counts per split; each tuple is in the order of ``splits``.

    Attributes:
        splits: names of the splits.
        movies: movies in each.
        posters: state ("present", "missing", "unreadable") to movies in each split.
        genres: (genre, movies in each split), in label order.
    """

    splits: tuple[str, ...]
    movies: tuple[int, ...]
    posters: dict[str, tuple[int, ...]]
    genres: tuple[tuple[str, tuple[int, ...]], ...]


def poster_states(movies: Sequence[Movie], cache_row: np.ndarray) -> np.ndarray:
    """(N,) str: what became of each movie's poster.

    Args:
        movies: N of them.
        cache_row: (N,) int64, the row in the poster cache, -1 for none.
    """
    return np.array(
        [
            "present"
            if row >= 0
            else "missing"
            if movie.poster is None or not movie.poster.exists
            else "unreadable"
            for movie, row in zip(movies, cache_row, strict=True)
        ]
    )


def absent_posters(movies: Sequence[Movie]) -> list[str]:
    """The posters that the dataset names but that are not there, as ``where: path``."""
    return [
        f"{movie.where}: {movie.poster.name}"
        for movie in movies
        if movie.poster is not None and not movie.poster.exists
    ]


def dataset_table(
    movie_set: MovieSet,
    splits: Mapping[str, np.ndarray],
    labels: np.ndarray,
    posters: np.ndarray,
) -> DatasetTable:
    """Count movies, posters and genres in each split.

    Args:
        movie_set: N movies, G genres.
        splits: name to row indices.
        labels: (N, G) multi-hot.
        posters: (N,) str, each one of "present", "missing", "unreadable".
    """
    unknown = sorted(set(np.unique(posters).tolist()) - set(POSTER_STATES))
    if unknown:
        raise ValueError(
            f"unknown poster state {unknown[0]!r}; there is {', '.join(POSTER_STATES)}"
        )
    rows = list(splits.values())
    counts = [np.asarray(labels[row], dtype=np.int64).sum(axis=0) for row in rows]
    return DatasetTable(
        splits=tuple(splits),
        movies=tuple(len(row) for row in rows),
        posters={
            state: tuple(int((posters[row] == state).sum()) for row in rows)
            for state in POSTER_STATES
        },
        genres=tuple(
            (genre, tuple(int(count[g]) for count in counts))
            for g, genre in enumerate(movie_set.genres)
        ),
    )


def render_table(table: DatasetTable, title: str = "Dataset") -> Table:
    """As a rich table, with a column for each split and one for all."""
    rendered = Table(title=title, title_justify="left")
    rendered.add_column("")
    for split in (*table.splits, "all"):
        rendered.add_column(split, justify="right")

    def add(name: str, counts: tuple[int, ...], end: bool = False) -> None:
        rendered.add_row(name, *(f"{n:,}" for n in (*counts, sum(counts))), end_section=end)

    add("movies", table.movies, end=True)
    for state, counts in table.posters.items():
        add(f"posters {state}", counts, end=state == POSTER_STATES[-1])
    for genre, counts in table.genres:
        add(genre, counts)
    return rendered
