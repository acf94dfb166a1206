"""Columns from another CSV, joined to a dataset by id."""

from __future__ import annotations

import pytest

from genre_lightning.movies.columns import join_columns
from genre_lightning.movies.manifest import read_manifest
from genre_lightning.movies.movie import DataError, MovieSet
from tests.datasets import movie

MOVIES = MovieSet(
    [movie(id="7"), movie(id="8", columns={"cast": "Pacino"}), movie(id="x y")],
    ("Action",),
    ("read from a shelf",),
)


@pytest.fixture
def columns(tmp_path):
    """Writes a CSV and returns its path."""

    def write(text: str):
        path = tmp_path / "columns.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_columns_are_joined_by_id(columns):
    path = columns('x y, A thief. ,\n8,,"Mann, Michael"\n')
    path.write_text("ID,Synopsis,director\n" + path.read_text())
    joined = join_columns(MOVIES, path)
    assert [m.columns for m in joined.movies] == [
        {"title": "Heat (1995)"},
        {"title": "Heat (1995)", "cast": "Pacino", "director": "Mann, Michael"},
        {"title": "Heat (1995)", "synopsis": "A thief."},
    ]
    assert joined.genres == MOVIES.genres and joined.notes == MOVIES.notes
    assert MOVIES.movies[2].columns == {"title": "Heat (1995)"}, "MOVIES must not change"


def test_lists_and_null_markers_are_read_as_in_a_manifest(columns):
    path = columns("id;director;crew\n7;[{'id': 1, 'name': 'Mann'}, {'name': 'Lee'}];\\N\n")
    first = join_columns(MOVIES, path).movies[0]
    assert first.columns == {"title": "Heat (1995)", "director": "Mann|Lee"}


@pytest.mark.parametrize(
    ("rows", "note"),
    [
        ("9,a\n7,b\n", "columns.csv: 1 row is of movies that the dataset does not have, first "
         "columns.csv:2: left out"),
        ("7,b\n9,a\n10,a\n", "columns.csv: 2 rows are of movies that the dataset does not have, "
         "first columns.csv:3: left out"),
    ],
    ids=["one", "two"],
)  # fmt: skip
def test_rows_with_unknown_ids_are_reported(rows, note, columns):
    joined = join_columns(MOVIES, columns("id,synopsis\n" + rows))
    assert joined.notes == (*MOVIES.notes, note)
    assert joined.movies[0].columns["synopsis"] == "b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", r"columns\.csv is empty; its first row must be id", id="empty"),
        pytest.param("movie,synopsis\n7,a\n", r"csv:1: the header has no column id", id="no-id"),
        pytest.param("id\n7\n", r"csv:1: there is no column besides id", id="id-alone"),
        pytest.param("id,,\n7,a,b\n", r"csv:1: there is no column besides id", id="nameless"),
        pytest.param("id,cast\n7,a\n", r"csv:1: .* column 'cast' already; rename", id="existing"),
        pytest.param("id,title\n7,a\n", r"csv:1: .* column 'title' already", id="title"),
        pytest.param("id,Genres\n7,a\n", r"csv:1: .* column 'genres' already", id="genres"),
        pytest.param("id,split\n7,val\n", r"csv:1: .* adds texts; put .*'split'", id="split"),
        pytest.param("id,poster\n7,a\n", r"csv:1: .*'poster'", id="poster"),
        pytest.param("id,a,a\n7,x,y\n", r"csv:1: the column 'a' comes more than once", id="double"),
        pytest.param("id,a\n7,x\n8,y\n7,z\n", r"csv:4, column id: '7' is .*csv:2", id="id-twice"),
        pytest.param("id,a\n7,x\n ,y\n", r"csv:3, column id: empty", id="empty-id"),
        pytest.param("id,a\n7\n", r"csv:2: 1 cells, but the header has 2", id="short"),
        pytest.param(
            "id,a\n107,x\n108,y\n",
            r"csv: none of its 2 ids is in the dataset, whose first id is '7'.*'107'",
            id="none-in-common",
        ),
        pytest.param("id,a\n", r"csv: none of its 0 ids .*the first here is 'none'", id="no-rows"),
    ],
)
def test_invalid_columns_are_refused(text, message, columns):
    with pytest.raises(DataError, match=message):
        join_columns(MOVIES, columns(text))


@pytest.fixture
def movies_without_ids(tmp_path):
    """Movies of a CSV without a column id, in rows 2 to 4."""
    path = tmp_path / "movies.csv"
    rows = "".join(f"{title},,Drama\n" for title in ("Alien", "Brazil", "Casino"))
    path.write_text("title,poster,genres\n" + rows, encoding="utf-8")
    return read_manifest(path)


@pytest.mark.parametrize("begin", [0, 1])
def test_ids_that_do_not_count_from_two_are_refused(begin, movies_without_ids, columns):
    rows = "".join(f"{number},text\n" for number in reversed(range(begin, begin + 3)))
    message = (
        rf"csv:4, column id: .*from 2 on, and {begin} is none of them.*Add a column id to both"
    )
    with pytest.raises(DataError, match=message):
        join_columns(movies_without_ids, columns("id,synopsis\n" + rows))


def test_row_numbers_are_ids_without_an_id_column(movies_without_ids, columns):
    joined = join_columns(movies_without_ids, columns("id,synopsis\n2,a\n4,c\n5,d\n"))
    assert [m.value("synopsis") for m in joined.movies] == ["a", None, "c"]


def test_an_unknown_id_1_is_dropped_if_the_dataset_has_ids(columns):
    joined = join_columns(MOVIES, columns("id,synopsis\n1,a\n7,b\n"))
    assert joined.movies[0].value("synopsis") == "b"


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"can't read .*none\.csv"):
        join_columns(MOVIES, tmp_path / "none.csv")


def test_the_columns_of_the_real_movies(ml1m_root):
    from genre_lightning.movies.ml1m import read_ml1m

    path = ml1m_root.parent / "ml1m-columns.csv"
    if not path.is_file():
        pytest.skip("no columns of the real movies here")
    movies = read_ml1m(ml1m_root)
    joined = join_columns(movies, path)
    assert {"synopsis", "director", "cast"} <= set(joined.columns())
    assert len(joined.movies) == len(movies.movies) and joined.notes == movies.notes
