"""The dataset table shown before training, and its notes."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from genre_lightning.movies.movie import Movie, MovieSet, PosterFile, without_empty
from genre_lightning.movies.summary import (
    STATES,
    absent_posters,
    column_states,
    dataset_table,
    duplicate_movie_notes,
    render_table,
    universal_genre_notes,
    unlearnable_genre_notes,
)

PRESENT = PosterFile(Path("1.jpg"), None, 10, 1)
GONE = PosterFile(Path("gone.jpg"), None, -1, 0)
MOVIES = [
    Movie(
        str(i),
        without_empty({"title": f"Movie {i}", "poster": poster, "synopsis": synopsis}),
        ("War",),
        None,
        f"movies.csv:{i + 2}",
    )
    for i, (poster, synopsis) in enumerate(
        [(PRESENT, "One."), (None, ""), (GONE, "Three."), (PRESENT, ""), (PRESENT, "Five.")]
    )
]
SPLITS = {"train": np.array([0, 1, 3]), "val": np.array([2]), "test": np.array([4])}
LABELS = np.array([[1, 0], [1, 1], [0, 1], [1, 0], [1, 1]], dtype=np.uint8)


POSTER_INDEX = np.array([0, -1, -1, -1, 1])


@pytest.fixture
def table():
    states = {
        "poster": column_states(MOVIES, "poster", POSTER_INDEX),
        "title": column_states(MOVIES, "title"),
        "synopsis": column_states(MOVIES, "synopsis"),
    }
    return dataset_table(MovieSet(MOVIES, ("War", "Drama")), SPLITS, LABELS, states)


def test_missing_and_unreadable_posters_are_distinguished():
    states = column_states(MOVIES, "poster", POSTER_INDEX)
    assert states.tolist() == ["present", "missing", "missing", "unreadable", "present"]


def test_values_of_an_unopened_column_are_present_or_missing():
    states = column_states(MOVIES, "poster")
    assert states.tolist() == ["present", "missing", "missing", "present", "present"]
    assert column_states(MOVIES, "synopsis").tolist() == [
        "present", "missing", "present", "missing", "present",
    ]  # fmt: skip
    assert set(column_states(MOVIES, "cast")) == {"missing"}


def test_counts_per_split(table):
    assert table.splits == ("train", "val", "test")
    assert table.movies == (3, 1, 1)
    assert {state: table.columns["poster", state] for state in STATES} == {
        "present": (1, 0, 1),
        "missing": (1, 1, 0),
        "unreadable": (1, 0, 0),
    }
    assert table.columns["synopsis", "missing"] == (2, 0, 0)
    assert table.columns["title", "present"] == (3, 1, 1)
    assert table.genres == (("War", (3, 0, 1)), ("Drama", (1, 1, 1)))


def test_counts_of_uint8_labels_do_not_overflow():
    movies = [MOVIES[0]] * 300
    labels = np.ones((300, 1), dtype=np.uint8)
    table = dataset_table(
        MovieSet(movies, ("War",)),
        {"train": np.arange(300)},
        labels,
        {"poster": np.array(["present"] * 300)},
    )
    assert table.genres == (("War", (300,)),)


def test_absent_posters_are_listed():
    assert absent_posters(MOVIES) == ["movies.csv:4: gone.jpg"]


@pytest.mark.parametrize(
    ("titles", "genres", "expected_start"),
    [
        (
            ["Heat", "Solaris", "Heat", "Ran", "Alien"],
            ["A", "A", "A", "A", "A"],
            "1 of the 2 .* has",
        ),
        (
            ["Heat", "Solaris", "HEAT ", "Ran", "Ran"],
            ["A", "A", "A", "B", "B"],
            "2 of the 2 .* have",
        ),
        (["Heat", "Solaris", "Heat", "Ran", "Ran"], ["A", "A", "B", "A", "B"], None),
        (["Heat", "Heat", "Solaris", "Heat", "Ran"], ["A", "A", "A", "A", "B"], None),
    ],
    ids=["one", "both", "a remake", "within train"],
)
def test_test_or_val_movies_that_are_also_in_train_are_reported(
    titles: list[str], genres: list[str], expected_start: str | None
):
    movies = [
        Movie(str(n), {"title": title}, (genre,), None, f"movies.csv:{n + 2}")
        for n, (title, genre) in enumerate(zip(titles, genres, strict=True))
    ]
    notes = duplicate_movie_notes(movies, SPLITS)
    if expected_start is None:
        assert notes == []
        return
    assert (
        re.match(expected_start, notes[0]) and "such as movies.csv:4 and movies.csv:2:" in notes[0]
    )
    # With folds, validation is all of train: the same movies, not duplicates.
    by_folds = {"train": SPLITS["train"], "val": SPLITS["train"], "test": np.array([], dtype=int)}
    assert duplicate_movie_notes(movies, by_folds) == []


@pytest.mark.parametrize(
    ("genres", "expected_start"),
    [
        (["A", "B"], None),
        (["A", "B", "C"], "no movie of train has the genre C: it can't be learnt, "),
        ([*"ABCDEFGHI"], "no movie of train has the genres C, D, E, F, G and 2 more: they can't"),
    ],
    ids=["none", "one", "many"],
)
def test_genres_missing_from_train_are_reported(genres: list[str], expected_start: str | None):
    labels = np.zeros((5, len(genres)), dtype=np.uint8)
    labels[[0, 1], [0, 1]] = 1
    labels[4] = 1
    notes = unlearnable_genre_notes(
        dataset_table(MovieSet(MOVIES, tuple(genres)), SPLITS, labels, {})
    )
    assert notes == [] if expected_start is None else notes[0].startswith(expected_start)


@pytest.mark.parametrize(
    ("genres", "expected_start"),
    [
        (["A", "B"], None),
        (["A", "B", "C"], "every movie of train has the genre C: it is predicted for any movie"),
        (["A", "B", "C", "D"], "every movie of train has the genres C, D: they are predicted"),
    ],
    ids=["none", "one", "two"],
)
def test_genres_of_every_training_movie_are_reported(genres: list[str], expected_start: str | None):
    labels = np.ones((5, len(genres)), dtype=np.uint8)
    labels[SPLITS["train"][0], :2] = 0
    notes = universal_genre_notes(
        dataset_table(MovieSet(MOVIES, tuple(genres)), SPLITS, labels, {})
    )
    assert notes == [] if expected_start is None else notes[0].startswith(expected_start)


def test_if_all_posters_are_absent_only_the_first_is_listed():
    posters = [PosterFile.at(Path(f"/nowhere/{n}.jpg")) for n in range(3)]
    movies = [Movie(str(n), {"poster": p}, ("A",), None, f"m:{n}") for n, p in enumerate(posters)]
    assert absent_posters(movies) == [
        "m:0: /nowhere/0.jpg, nor any other of the 3 that the dataset names"
    ]


def test_a_genre_that_no_movie_has_is_not_reported():
    # MM-IMDb always lists all genres of the benchmark, whichever movies are present.
    table = dataset_table(MovieSet(MOVIES, ("War", "Opera")), SPLITS, LABELS * [1, 0], {})
    assert unlearnable_genre_notes(table) == []


def test_a_few_duplicates_are_not_reported():
    movies = [Movie(str(n), {"title": f"T{n % 201}"}, ("A",), None, "") for n in range(203)]
    splits = {"train": np.array([0]), "val": np.array([], dtype=int), "test": np.arange(1, 203)}
    assert duplicate_movie_notes(movies, splits) == []
    splits["train"], splits["test"] = np.array([0, 1, 2]), np.arange(3, 203)
    assert len(duplicate_movie_notes(movies, splits)) == 1


def test_an_unknown_state_raises_value_error():
    with pytest.raises(ValueError, match="poster: unknown state 'lost'"):
        dataset_table(
            MovieSet(MOVIES, ("War", "Drama")), SPLITS, LABELS, {"poster": np.array(["lost"] * 5)}
        )


def test_the_rendered_table_has_a_total_column(table):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_table(table))
    cells = [line.replace("│", " ").split() for line in console.export_text().splitlines()]
    assert ["movies", "3", "1", "1", "5"] in cells
    assert ["posters", "missing", "1", "1", "0", "2"] in cells
    assert ["without", "synopsis", "2", "0", "0", "2"] in cells
    assert not any("title" in line for line in cells)  # every movie has one
    assert ["Drama", "1", "1", "1", "3"] in cells
