"""The table before training."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from genre_lightning.movies.movie import Movie, MovieSet, PosterFile
from genre_lightning.movies.summary import (
    absent_posters,
    dataset_table,
    poster_states,
    render_table,
)

THERE = PosterFile(Path("1.jpg"), None, 10, 1)
GONE = PosterFile(Path("gone.jpg"), None, -1, 0)
MOVIES = [
    Movie(str(i), f"Movie {i}", poster, ("War",), None, f"movies.csv:{i + 2}")
    for i, poster in enumerate([THERE, None, GONE, THERE, THERE])
]
SPLITS = {"train": np.array([0, 1, 3]), "val": np.array([2]), "test": np.array([4])}
LABELS = np.array([[1, 0], [1, 1], [0, 1], [1, 0], [1, 1]], dtype=np.uint8)


@pytest.fixture
def table():
    states = poster_states(MOVIES, np.array([0, -1, -1, -1, 1]))
    return dataset_table(MovieSet(MOVIES, ("War", "Drama")), SPLITS, LABELS, states)


def test_states_tell_missing_from_unreadable():
    states = poster_states(MOVIES, np.array([0, -1, -1, -1, 1]))
    assert states.tolist() == ["present", "missing", "missing", "unreadable", "present"]


def test_counts_per_split(table):
    assert table.splits == ("train", "val", "test")
    assert table.movies == (3, 1, 1)
    assert table.posters == {
        "present": (1, 0, 1),
        "missing": (1, 1, 0),
        "unreadable": (1, 0, 0),
    }
    assert table.genres == (("War", (3, 0, 1)), ("Drama", (1, 1, 1)))


def test_labels_of_bytes_do_not_overflow():
    movies = [MOVIES[0]] * 300
    labels = np.ones((300, 1), dtype=np.uint8)
    table = dataset_table(
        MovieSet(movies, ("War",)), {"train": np.arange(300)}, labels, np.array(["present"] * 300)
    )
    assert table.genres == (("War", (300,)),)


def test_posters_not_there_are_named():
    assert absent_posters(MOVIES) == ["movies.csv:4: gone.jpg"]


def test_an_unknown_state_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="unknown poster state 'lost'"):
        dataset_table(MovieSet(MOVIES, ("War", "Drama")), SPLITS, LABELS, np.array(["lost"] * 5))


def test_the_rendered_table_has_a_column_for_all(table):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_table(table))
    cells = [line.replace("│", " ").split() for line in console.export_text().splitlines()]
    assert ["movies", "3", "1", "1", "5"] in cells
    assert ["posters", "missing", "1", "1", "0", "2"] in cells
    assert ["Drama", "1", "1", "1", "3"] in cells
