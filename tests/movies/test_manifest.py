"""The manifest reader: a user's own CSV."""

from __future__ import annotations

import csv
import json
import os
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from genre_lightning.movies.manifest import read_manifest
from genre_lightning.movies.movie import DataError
from genre_lightning.movies.readers import read_movies
from tests.datasets import poster_of

HEADER = "title,poster,genres\n"


@pytest.fixture
def manifest(tmp_path):
    """Writes a CSV and returns its path."""

    def write(text: str | bytes):
        path = tmp_path / "movies.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_all_columns(manifest, tmp_path):
    (tmp_path / "art").mkdir()
    (tmp_path / "art" / "heat.png").write_bytes(b"12345")
    path = manifest(
        "id,split,genres,poster,title,rating\n"
        'x7,train,Crime|Drama,art/heat.png,"Godfather, The (1972)",9\n'
        "x8,,War,,Das Boot,\n"
        "x9,test, Drama | War ,art/gone.png,Amélie,8\n"
        "x1,VAL,Crime,art,Léon,8\n"
    )
    movie_set = read_manifest(path)
    assert movie_set.genres == ("Crime", "Drama", "War")
    found = [(m.id, m.title, m.genres, m.split, m.where) for m in movie_set.movies]
    assert found == [
        ("x7", "Godfather, The (1972)", ("Crime", "Drama"), "train", "movies.csv:2"),
        ("x8", "Das Boot", ("War",), None, "movies.csv:3"),
        ("x9", "Amélie", ("Drama", "War"), "test", "movies.csv:4"),
        ("x1", "Léon", ("Crime",), "val", "movies.csv:5"),
    ]
    present, missing, gone, folder = (poster_of(m) for m in movie_set.movies)
    assert missing is None
    assert present is not None and present.exists
    assert (present.read_bytes(), present.size) == (b"12345", 5)
    # Kept, so that the dataset summary can list it by name.
    assert gone is not None and not gone.exists and gone.name.endswith("gone.png")
    assert folder is not None and not folder.exists


def test_a_poster_url_is_dropped_and_reported(manifest):
    rows = "A,https://example.org/a.jpg,Drama\nB,HTTP://example.org/b.jpg,War\nC,gone.jpg,War\n"
    movie_set = read_manifest(manifest(HEADER + rows))
    assert [movie.value("poster") is None for movie in movie_set.movies] == [True, True, False]
    (note,) = movie_set.notes
    assert note.startswith(
        "movies.csv:2, column poster: https://example.org/a.jpg is a URL, the first of 2."
    )
    assert read_manifest(manifest(HEADER + "C,gone.jpg,War\n")).notes == ()


def test_without_optional_columns_the_row_is_the_id(manifest):
    movie_set = read_manifest(manifest(HEADER + "A,,Drama\nB,,War\n"))
    assert [(m.id, m.split) for m in movie_set.movies] == [("2", None), ("3", None)]


def test_paths_are_relative_to_the_file(manifest, tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(b"a")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = manifest(HEADER + f"A,a.jpg,Drama\nB,{tmp_path / 'a.jpg'},Drama\n")
    monkeypatch.chdir(elsewhere)
    posters = [poster_of(m) for m in read_manifest(path).movies]
    assert [poster is not None and poster.exists for poster in posters] == [True, True]


def test_paths_of_windows_are_read(manifest, tmp_path):
    (tmp_path / "art").mkdir()
    (tmp_path / "art" / "a.jpg").write_bytes(b"a")
    movie, gone = read_manifest(manifest(HEADER + "A,art\\a.jpg,War\nB,art\\b.jpg,War\n")).movies
    poster, missing = poster_of(movie), poster_of(gone)
    assert poster is not None and poster.read_bytes() == b"a"
    assert missing is not None and not missing.exists and missing.name.endswith("b.jpg")


@pytest.mark.skipif(os.sep == "\\", reason="there, no file has such a name")
def test_a_poster_may_have_a_backslash_in_its_name(manifest, tmp_path):
    (tmp_path / "a\\b.jpg").write_bytes(b"a")
    (movie,) = read_manifest(manifest(HEADER + "A,a\\b.jpg,War\n")).movies
    poster = poster_of(movie)
    assert poster is not None and poster.exists


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(("\ufeff" + HEADER + "Léon,,Drama\n").encode(), id="bom"),
        pytest.param((HEADER + "Léon,,Drama\n").replace("\n", "\r\n").encode(), id="crlf"),
        pytest.param((HEADER + "Léon,,Drama").encode(), id="no-final-newline"),
        pytest.param(("Title, POSTER ,Genres\n" + " Léon , , Drama \n").encode(), id="blanks"),
        pytest.param(
            b'"title", "poster", "genres"\n"L\xc3\xa9on", "", "Drama"\n', id="quoted-blanks"
        ),
        pytest.param((HEADER + "\n,,\nLéon,,Drama\n\n").encode(), id="blank-rows"),
    ],
)
def test_equivalent_csv_files_are_read_alike(manifest, text):
    (movie,) = read_manifest(manifest(text)).movies
    assert (movie.title, poster_of(movie), movie.genres) == ("Léon", None, ("Drama",))


def test_every_further_column_is_text(manifest):
    text = "Title,poster,genres,Synopsis,cast,split\nA,,Drama, A thief. ,,\nB,,War,,Pacino,val\n"
    first, second = read_manifest(manifest(text)).movies
    assert first.columns == {"title": "A", "synopsis": "A thief."}
    assert second.columns == {"title": "B", "cast": "Pacino"}
    assert read_manifest(manifest(text)).columns() == ("title", "cast", "synopsis")


def test_columns_without_a_name_are_ignored(manifest):
    # pandas writes its index this way, and spreadsheets their cleared columns.
    (movie,) = read_manifest(manifest(",title,poster,genres,,\n0,A,,Drama,,x\n")).movies
    assert movie.columns == {"title": "A"} and movie.genres == ("Drama",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", r"movies\.csv is empty", id="empty"),
        pytest.param(HEADER, r"no movies", id="header-alone"),
        pytest.param("Name,genres\nA,B\n", r"no column title; it has Name, .*rename", id="column"),
        pytest.param("\ntitle,poster,genres\n", "csv:1: the first row is blank", id="blank-first"),
        pytest.param("title;genres\nA;B;C\n", r"a cell with a semicolon in it", id="semicolons"),
        pytest.param(HEADER + '"A" B,,War\n', r"csv:2 .*double each quote", id="quote"),
        pytest.param("title,title,poster,genres\n", r"'title' comes more than once", id="double"),
        pytest.param(
            HEADER + "A,,Drama\n,,Drama\n", r"csv:3, column title: empty; give each", id="title"
        ),
        pytest.param(
            HEADER + "A,,Drama\n,,Drama\n,,Drama\n",
            r"csv:3, column title: empty, the first of 2; give each movie a title, or remove",
            id="titles",
        ),
        pytest.param(HEADER + "A,,\nB,,\n", r"csv:2, column genres: empty", id="genres"),
        pytest.param(
            HEADER + "A,,War\nB,,War|Sci\u00a0Fi\n",
            r"csv:3, column genres: 'Sci\\xa0Fi' has .* \(U\+00A0\)",
            id="invisible",
        ),
        pytest.param(HEADER + "A,, | \n", r"csv:2, column genres: empty", id="genres-of-bars"),
        pytest.param(HEADER + "A,\n", r"csv:2: 2 cells, but the header has 3", id="short"),
        pytest.param(HEADER + "B, The,,C\n", r"csv:2: 4 cells.*needs quotes", id="comma-in-title"),
        pytest.param(HEADER + '"A,,Drama\nB,,War\n', r"csv:2 .*a quote is opened", id="open-quote"),
        pytest.param(
            "title,poster,genres,split\nA,,D,train\nB,,D,dev\n",
            r"csv:3, column split: 'dev' is none of train, val, test",
            id="split",
        ),
        pytest.param(
            "id,title,poster,genres\n7,A,,D\n8,B,,D\n7,C,,D\n",
            r"csv:4, column id: '7' is already the id at movies\.csv:2; give each movie its own",
            id="id-twice",
        ),
        pytest.param(
            "id,title,poster,genres\n7,A,,D\n7,B,,D\n8,C,,D\n8,E,,D\n",
            r"csv:3, column id: '7' is already the id at movies\.csv:2, the first of 2; give",
            id="ids-twice",
        ),
        pytest.param("id,title,poster,genres\n,A,,D\n", r"csv:2, column id: empty", id="no-id"),
        pytest.param(
            HEADER + "A,,Sci-Fi\nB,,Drama\nC,,Drama|sci-fi\n",
            r"csv:4, column genres: 'sci-fi' is 'Sci-Fi' at movies\.csv:2: spell both alike",
            id="capitals",
        ),
        pytest.param(
            HEADER + "A,,Film  noir\nB,,Drama\nC,,Drama|Film Noir\n",
            r"csv:4, column genres: 'Film Noir' is 'Film  noir' at movies\.csv:2: spell both alike",
            id="blanks",
        ),
        pytest.param(
            HEADER + "A,,Drama\nB,,\uff24rama\n",
            r"csv:3, column genres: '\uff24rama' is 'Drama' at movies\.csv:2: spell both alike",
            id="wide letters",
        ),
        pytest.param(HEADER.encode() + b"L\xe9on,,Drama\n", r"not UTF-8 \(line 2", id="latin-1"),
    ],
)
def test_invalid_manifests_are_refused(manifest, text, message):
    with pytest.raises(DataError, match=message):
        read_movies("manifest", path=manifest(text))


def test_genres_are_compared_in_unicode_normal_form(manifest):
    found = read_manifest(manifest(HEADER + "A,,Com\u00e9die\nB,,Come\u0301die|Drama\n"))
    assert found.genres == ("Com\u00e9die", "Drama")
    assert found.movies[1].genres == ("Com\u00e9die", "Drama")


def test_errors_give_the_spreadsheet_row_and_the_line(manifest):
    text = HEADER + '"Two\nlines",,Drama\n\n"And\nthree\nhere",,War\n,,War\n'
    with pytest.raises(DataError, match=r"movies\.csv:5 \(line 8\), column title"):
        read_movies("manifest", path=manifest(text))


def test_a_cell_with_line_breaks_is_one_row(manifest):
    path = manifest(HEADER + '"Two\nlines",,Drama\nB,,War\n')
    assert [m.id for m in read_manifest(path).movies] == ["2", "3"]


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"can't read .*none\.csv"):
        read_manifest(tmp_path / "none.csv")


def test_a_changed_poster_has_another_stamp(manifest, tmp_path):
    poster = tmp_path / "a.jpg"
    poster.write_bytes(b"one")
    path = manifest(HEADER + "A,a.jpg,Drama\n")
    before = poster_of(read_manifest(path).movies[0])
    poster.write_bytes(b"other")
    assert poster_of(read_manifest(path).movies[0]) != before


def csv_of_genres(cells: list[str]) -> str:
    return HEADER + "".join(f'M{n},,"{cell}"\n' for n, cell in enumerate(cells))


#: The genres of each movie of a typical table, five genres in all.
MOVIES = [
    *(["Action"], ["Drama"], ["Action", "Comedy"], ["Comedy", "Drama"], ["War"], ["Drama", "War"]),
    *(["Action", "War"], ["Crime", "Drama"], ["Action", "Comedy", "Crime"], ["Crime"]),
]


@pytest.mark.parametrize("separator", [",", ", ", ";", " ; ", "/", " & "])
def test_another_separator_is_detected_and_suggested(manifest, separator):
    path = manifest(csv_of_genres([separator.join(genres) for genres in MOVIES]))
    with pytest.raises(DataError, match=r"movies\.csv:4, column genres: .*and 5 more") as caught:
        read_manifest(path)
    message = str(caught.value)
    assert "(5 genres instead of 10)" in message
    other, bar = (word for word in shlex.split(message) if word.startswith("data.genre_separator"))
    separators = [str(OverridesParser.create().parse_override(o).value()) for o in (other, bar)]
    assert separators == [separator.strip(), "|"]
    found = read_manifest(path, separators[0])
    assert [list(movie.genres) for movie in found.movies] == MOVIES
    # For genre names that contain the separator, the default can be set explicitly.
    assert len(read_manifest(path, separators[1]).genres) == 10


@pytest.mark.parametrize(
    "cells",
    [
        pytest.param(["|".join(genres) for genres in MOVIES], id="default-separator"),
        pytest.param(["Music, Dance", "Kids, Family", "War", "Kids, Family"], id="commas-in-names"),
        pytest.param(["Sci-Fi/Fantasy|War", "Drama", "Sci-Fi/Fantasy|Drama"], id="slash-in-a-name"),
        pytest.param(["Action & Adventure", "War & Politics", "War", "Drama"], id="and-in-names"),
        pytest.param(["Sci-Fi/Fantasy", "Sci-Fi", "Fantasy", "War", "Drama"], id="one-name-is-two"),
    ],
)
def test_genre_names_with_separators_are_not_split(manifest, cells):
    found = read_manifest(manifest(csv_of_genres(cells))).movies
    assert ["|".join(movie.genres) for movie in found] == cells


def test_genres_separated_by_spaces_are_detected(manifest):
    path = manifest(csv_of_genres([" ".join(genres) for genres in MOVIES]))
    with pytest.raises(DataError, match=r"Split them there with .*' '.*5 genres instead of 10"):
        read_manifest(path)
    assert [list(movie.genres) for movie in read_manifest(path, " ").movies] == MOVIES
    # Spaces are common in genre names.
    names = ["Science Fiction", "Film Noir", "Drama", "Science Fiction|Drama"]
    assert len(read_manifest(manifest(csv_of_genres(names))).genres) == 3


@pytest.mark.parametrize("form", ["{{{}}}", "({})", "c({})", "[{}]"])
def test_lists_of_other_programs_are_refused_without_a_separator(manifest, form):
    path = manifest(csv_of_genres([form.format(", ".join(genres)) for genres in MOVIES]))
    with pytest.raises(DataError, match="begins like a list but can't be read") as refused:
        read_manifest(path)
    assert "genre_separator" not in str(refused.value)


def test_a_missing_split_may_be_written_as_a_marker(manifest):
    path = manifest("title,poster,genres,split\nA,,D,train\nB,,D,NaN\nC,,D,NULL\n")
    assert [movie.split for movie in read_manifest(path).movies] == ["train", None, None]


@pytest.mark.parametrize("separator", [None, ",", "|"])
@pytest.mark.parametrize(
    "dump",
    [
        pytest.param(json.dumps, id="json"),
        pytest.param(str, id="python"),
        pytest.param(lambda names: json.dumps([{"id": 7, "name": n} for n in names]), id="tmdb"),
        pytest.param(lambda names: str([{"id": 7, "name": n} for n in names]), id="movies-dataset"),
    ],
)
def test_json_and_python_lists_are_read(manifest, dump, separator):
    names = [*MOVIES, ["Children's", "R, \u201cB\u201d"]]
    path = manifest("title,genres,keywords\n")
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(("M", dump(each), dump(each)) for each in [*names, []])
    movie_set = read_manifest(path, separator)
    assert [list(movie.genres) for movie in movie_set.movies] == names
    # In other columns, lists become names joined by bars, as the branches for lists expect.
    assert [movie.value("keywords") for movie in movie_set.movies] == ["|".join(n) for n in names]
    assert movie_set.notes == ("movies.csv:13, column genres: empty, so the movie is left out",)


@pytest.mark.parametrize(
    "cell", ["['Action' 'Drama']", "['Action', 'Dra", "[{'id': 1}]", "['Action', f()]"]
)
@pytest.mark.parametrize("separator", [None, ","])
def test_an_unreadable_list_is_refused(manifest, cell, separator):
    with pytest.raises(DataError, match=r"csv:3, column genres: .* can't be read as one; write"):
        read_manifest(manifest(csv_of_genres(["War", cell])), separator)


def test_movies_without_genres_are_dropped_and_reported(manifest):
    cells = ["War", "", r"\N", "(no genres listed)", "nan", "Drama"]
    movie_set = read_manifest(manifest(csv_of_genres(cells)))
    assert movie_set.genres == ("Drama", "War")
    assert [movie.id for movie in movie_set.movies] == ["2", "7"]
    (note,) = movie_set.notes
    assert note == "movies.csv:3, column genres: empty, so the movie is left out, the first of 4"


def test_null_markers_are_empty_except_in_titles(manifest):
    path = manifest("title,poster,genres,synopsis\nNone,\\N,War,NaN\n")
    (movie,) = read_manifest(path).movies
    assert movie.columns == {"title": "None"}  # a movie may be called None


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_are_detected_from_the_header(manifest, delimiter):
    rows = (["title", "genres"], ["Godfather, The", "Crime|Drama"], [f"A{delimiter}B", "War"])
    path = manifest("")
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    found = [(movie.title, movie.genres) for movie in read_manifest(path).movies]
    assert found == [("Godfather, The", ("Crime", "Drama")), (f"A{delimiter}B", ("War",))]


@pytest.mark.parametrize("separator", ["", 5])
def test_an_invalid_separator_is_refused(manifest, separator):
    with pytest.raises(DataError, match=r"data\.genre_separator=.* must be text"):
        read_manifest(manifest(csv_of_genres(["War"])), separator)
