"""Movies, the bytes of their posters, their labels, and the checks that every reader runs."""

from __future__ import annotations

import os
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from genre_lightning.movies.movie import (
    DataError,
    MovieSet,
    PosterFile,
    check_movies,
    encode_genres,
    without_empty,
)
from tests.datasets import movie


def write_archive(path: Path, contents: dict[str, bytes]) -> list[PosterFile]:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    with zipfile.ZipFile(path) as archive:
        return [PosterFile(path, i.filename, i.file_size, i.CRC) for i in archive.infolist()]


def test_labels_equal_a_plain_loop():
    genres = ("War", "Action", "Drama")
    rows = [("Drama",), ("Action", "War"), ("War", "Drama", "Action"), ("War", "War")]
    labels = encode_genres([movie(genres=row) for row in rows], genres)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[int(genre in row) for genre in genres] for row in rows]


def test_labels_of_an_unknown_genre_name_the_row():
    with pytest.raises(DataError, match=r"movies\.dat:1, column genres: .*'Noir'.*Action, Drama"):
        encode_genres([movie(genres=("Noir",))], ("Action", "Drama"))


@pytest.mark.parametrize(
    ("movies", "genres", "message"),
    [
        pytest.param([], ("Action",), "no movies", id="no-movies"),
        pytest.param([movie()], (), "no genres", id="no-genres"),
        pytest.param([movie()], ("Action", "Action"), "more than once: Action", id="genre-twice"),
        pytest.param([movie()], ("Action", " "), "empty name", id="genre-without-name"),
        pytest.param([movie(id=" ")], ("Action",), "dat:1, column id", id="no-id"),
        pytest.param([movie(title="")], ("Action",), "dat:1, column title", id="no-title"),
        pytest.param([movie(genres=())], ("Action",), "dat:1, column genres", id="unlabelled"),
        pytest.param(
            [movie(columns={"synopsis": float("nan")})],
            ("Action",),
            "dat:1, column synopsis: of type float, not a text",
            id="nan",
        ),
        pytest.param([movie(genres=("Noir",))], ("Action",), "'Noir'", id="unknown-genre"),
        pytest.param([movie(split="dev")], ("Action",), "dat:1, column split: 'dev'", id="split"),
        pytest.param(
            [movie(), movie(where="movies.dat:7")],
            ("Action",),
            r"dat:7, column id: '1' is already the id at movies\.dat:1",
            id="id-twice",
        ),
    ],
)
def test_invalid_movies_are_refused(movies, genres, message):
    with pytest.raises(DataError, match=message):
        check_movies(MovieSet(movies, genres))


def test_valid_movies_pass():
    check_movies(MovieSet([movie(), movie(id="2", split="val")], ("Action", "Never seen")))


def test_value_returns_a_column_of_a_movie():
    poster = PosterFile(Path("1.jpg"), None, 10, 1)
    heat = movie(poster=poster, columns={"synopsis": "A thief."}, id="7")
    assert heat.title == "Heat (1995)"
    assert (heat.value("poster"), heat.value("synopsis")) == (poster, "A thief.")
    assert heat.value("cast") is None and heat.value("id") == "7"
    assert movie(title=poster).title == ""  # a reader's bug, which check_movies refuses


def test_without_empty_drops_empty_cells():
    poster = PosterFile(Path("1.jpg"), None, -1, 0)
    cells = {"title": "Heat", "synopsis": "", "cast": None, "poster": poster}
    assert without_empty(cells) == {"title": "Heat", "poster": poster}


def test_columns_lists_the_columns_of_any_movie():
    poster = PosterFile(Path("1.jpg"), None, 10, 1)
    movies = [movie(columns={"cast": "Pacino"}), movie(poster=poster, columns={"a": "b"})]
    assert MovieSet(movies, ("Action",)).columns() == ("title", "poster", "a", "cast")
    assert MovieSet([movie()], ("Action",)).columns() == ("title",)


def test_bytes_of_a_file(tmp_path):
    path = tmp_path / "1.jpg"
    path.write_bytes(b"poster")
    poster = PosterFile(path, None, 6, path.stat().st_mtime_ns)
    assert poster.read_bytes() == b"poster"
    assert poster.name == str(path)
    assert poster.exists


def test_poster_file_at_a_path(tmp_path):
    path = tmp_path / "1.jpg"
    path.write_bytes(b"poster")
    assert PosterFile.at(path) == PosterFile(path, None, 6, path.stat().st_mtime_ns)
    for not_a_file in (tmp_path, tmp_path / "gone.jpg", path / "below.jpg", Path("a\0b.jpg")):
        assert PosterFile.at(not_a_file) == PosterFile(not_a_file, None, -1, 0)


def test_reading_a_missing_file_raises(tmp_path):
    poster = PosterFile(tmp_path / "gone.jpg", None, -1, 0)
    assert not poster.exists
    assert poster.name.endswith("gone.jpg")
    with pytest.raises(FileNotFoundError):
        poster.read_bytes()


def test_threads_share_an_archive(tmp_path):
    contents = {f"{i}.jpg": os.urandom(5000 + i) for i in range(40)}
    posters = write_archive(tmp_path / "posters.zip", contents) * 5
    barrier = threading.Barrier(8)

    def read(poster: PosterFile) -> bytes:
        if not barrier.broken:
            barrier.wait(timeout=10)
        return poster.read_bytes()

    with ThreadPoolExecutor(8) as pool:
        read_back = list(pool.map(read, posters))
    assert read_back == list(contents.values()) * 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_can_read_an_open_archive(tmp_path):
    contents = {f"{i}.jpg": os.urandom(200_000) for i in range(20)}
    posters = write_archive(tmp_path / "posters.zip", contents)
    posters[0].read_bytes()  # opened here, before the fork
    with get_context("fork").Pool(2) as pool:
        in_children = pool.map_async(PosterFile.read_bytes, posters * 3, chunksize=1)
        in_parent = [poster.read_bytes() for poster in posters * 3]
        assert in_children.get(timeout=60) == in_parent == list(contents.values()) * 3


def test_a_replaced_archive_is_reopened(tmp_path):
    path = tmp_path / "posters.zip"
    write_archive(path, {"1.jpg": b"first"})[0].read_bytes()
    (replaced,) = write_archive(path, {"1.jpg": b"another, and longer"})
    assert replaced.read_bytes() == b"another, and longer"


def test_a_missing_member_raises(tmp_path):
    path = tmp_path / "posters.zip"
    write_archive(path, {"1.jpg": b"first"})
    with pytest.raises(FileNotFoundError, match=r"posters\.zip:2\.jpg"):
        PosterFile(path, "2.jpg", 5, 0).read_bytes()


def test_a_damaged_member_raises_oserror(tmp_path):
    path = tmp_path / "posters.zip"
    data = os.urandom(1000)
    with zipfile.ZipFile(path, "w") as archive:  # stored, not deflated
        archive.writestr("1.jpg", data)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(data[500:510], bytes(10)))
    with pytest.raises(OSError, match=r"1\.jpg.*CRC"):
        PosterFile(path, "1.jpg", 1000, 0).read_bytes()


def test_a_truncated_archive_raises_oserror(tmp_path):
    path = tmp_path / "posters.zip"
    (poster,) = write_archive(path, {"1.jpg": os.urandom(1000)})
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(OSError, match=r"1\.jpg"):
        poster.read_bytes()
