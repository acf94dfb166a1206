"""The table of readers."""

from __future__ import annotations

import pytest

from genre_lightning.movies.movie import DataError, MovieSet
from genre_lightning.movies.readers import READERS, read_movies
from tests.datasets import poster_of


def test_a_reader_is_found_by_name(tmp_path):
    path = tmp_path / "movies.csv"
    path.write_text("title,poster,genres\nHeat,,Crime\n")
    movie_set = read_movies("manifest", path=path)
    assert isinstance(movie_set, MovieSet)
    assert [movie.title for movie in movie_set.movies] == ["Heat"]


@pytest.mark.parametrize(
    ("reader", "options", "message"),
    [
        pytest.param("imdb", {}, "no reader 'imdb'; choose from demo, ml1m, manifest", id="reader"),
        pytest.param(
            "ml1m", {"path": "x"}, "ml1m has no option 'path'; it has root, download", id="option"
        ),
        pytest.param("manifest", {}, "needs the option 'path', e.g. data.path=", id="not-given"),
        pytest.param("ml1m", {"root": None}, "needs the option 'root'", id="given-as-null"),
    ],
)
def test_unknown_readers_and_options_are_refused(reader, options, message):
    with pytest.raises(DataError, match=message):
        read_movies(reader, **options)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        pytest.param(None, "the reader own returned a NoneType, no MovieSet", id="nothing"),
        pytest.param([], "the reader own returned a list, no MovieSet", id="list"),
        pytest.param(MovieSet([], ("War",)), "the dataset has no movies", id="not-checked"),
    ],
)
def test_what_a_reader_returns_is_checked(found, message, monkeypatch):
    monkeypatch.setitem(READERS, "own", lambda: found)
    with pytest.raises(DataError, match=message):
        read_movies("own")


@pytest.mark.parametrize("reader", list(READERS))
def test_no_reader_opens_a_poster(reader, tmp_path, monkeypatch):
    """Readers only locate posters; inputs decode them and report the unreadable ones."""
    if reader == "demo":
        options: dict[str, object] = {"root": tmp_path, "num_movies": 20, "poster_height": 32}
        read_movies(reader, **options)  # draws them
    elif reader == "ml1m":
        (tmp_path / "movies.dat").write_text("1::Heat::Crime\n")
        (tmp_path / "ml1m-images").mkdir()
        (tmp_path / "ml1m-images" / "1.jpg").write_bytes(b"no image")
        options = {"root": tmp_path}
    elif reader == "mmimdb":
        (tmp_path / "split.json").write_text('{"train": ["1"], "dev": [], "test": []}')
        (tmp_path / "dataset").mkdir()
        (tmp_path / "dataset" / "1.json").write_text('{"title": "Heat", "genres": ["Crime"]}')
        (tmp_path / "dataset" / "1.jpeg").write_bytes(b"no image")
        options = {"root": tmp_path}
    else:
        (tmp_path / "movies.csv").write_text("title,poster,genres\nHeat,1.jpg,Crime\n")
        (tmp_path / "1.jpg").write_bytes(b"no image")
        options = {"path": tmp_path / "movies.csv"}

    def fail(*_args, **_options):
        raise AssertionError("a reader opened an image")

    monkeypatch.setattr("PIL.Image.open", fail)
    assert any(poster_of(movie) is not None for movie in read_movies(reader, **options).movies)
