"""The mmimdb reader, on a small folder in the layout of MM-IMDb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from genre_lightning.movies.mmimdb import GENRES, read_mmimdb
from genre_lightning.movies.movie import DataError

MOVIES: dict[str, dict[str, Any]] = {
    "0000008": {"title": "Carmencita", "year": 1894, "genres": ["Documentary", "Short"],
                "plot": ["She dances.", "She dances before a camera, in a long dress."]},
    "0468569": {"title": "The Dark Knight", "year": 2008, "genres": ["Action", "News", "Drama"],
                "plot": ["A joker."]},
    "0111161": {"title": "Shawshank", "genres": ["Drama"], "plot": []},
    "0000001": {"title": "Only news", "genres": ["News", "Talk-Show"], "plot": ["x"]},
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    folder.mkdir()
    for movie_id, entry in MOVIES.items():
        (folder / f"{movie_id}.json").write_text(json.dumps(entry), "utf-8")
    (folder / "0468569.jpeg").write_bytes(b"not opened by a reader")
    splits = {"train": ["0000008", "0000001"], "dev": ["0111161"], "test": ["0468569"]}
    (tmp_path / "split.json").write_text(json.dumps(splits), "utf-8")
    return tmp_path


def test_movies_are_read_from_the_files(root: Path):
    movie_set = read_mmimdb(root)
    movies = {movie.id: movie for movie in movie_set.movies}
    assert movie_set.genres == GENRES
    assert len(GENRES) == 23
    assert list(movies) == ["0000008", "0111161", "0468569"]
    assert [movie.split for movie in movies.values()] == ["train", "val", "test"]
    assert movies["0000008"].title == "Carmencita (1894)"
    assert movies["0000008"].value("synopsis") == MOVIES["0000008"]["plot"][1]
    assert movies["0111161"].title == "Shawshank"
    assert "synopsis" not in movies["0111161"].columns
    assert movies["0468569"].genres == ("Action", "Drama")
    poster = movies["0468569"].columns["poster"]
    assert not isinstance(poster, str)
    assert poster.read_bytes() == b"not opened by a reader"


def test_ignored_genres_and_movies_are_counted(root: Path):
    genres, movies = read_mmimdb(root).notes
    assert "News 2" in genres
    assert "Talk-Show 1" in genres
    assert movies.endswith("left out: 1")


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (lambda root: (root / "split.json").unlink(), "split.json"),
        (lambda root: (root / "split.json").write_text('{"train": []}'), "'dev' is missing"),
        (lambda root: (root / "split.json").write_text("[" * 100_000), "not JSON"),
        (
            lambda root: (root / "split.json").write_text(
                '{"train": ["0000008", "0111161"], "dev": ["0111161"], "test": []}'
            ),
            "split.json: the id '0111161' is listed 2 times",
        ),
        (lambda root: (root / "dataset/0000008.json").unlink(), "0000008.json"),
        (lambda root: (root / "dataset/0000008.json").write_text("[]"), "no JSON object"),
        (lambda root: (root / "dataset/0000008.json").write_text("{}"), "key title"),
        (
            lambda root: (root / "dataset/0000008.json").write_text('{"title": "x", "genres": 3}'),
            "key genres",
        ),
        (
            lambda root: (root / "dataset/0000008.json").write_text(
                '{"title": "x", "genres": ["Drama"], "plot": [3]}'
            ),
            "key plot",
        ),
    ],
    ids=[
        "no split",
        "no dev",
        "deep",
        "id twice",
        "no movie",
        "list",
        "no title",
        "genres",
        "plot",
    ],
)
def test_invalid_files_are_refused(root: Path, corrupt, message: str):
    corrupt(root)
    with pytest.raises(DataError, match=message):
        read_mmimdb(root)
