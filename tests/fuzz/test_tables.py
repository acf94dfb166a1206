"""Damaged CSV files give rows, or an error message that names the file."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from genre_lightning import GenrePredictor
from genre_lightning.errors import UserError
from genre_lightning.inputs.input import Store
from genre_lightning.inputs.pixels import PixelsInput
from genre_lightning.inputs.vectors import read_vectors
from genre_lightning.movies.columns import join_columns
from genre_lightning.movies.manifest import read_manifest
from genre_lightning.movies.movie import MovieSet
from genre_lightning.movies.readers import read_movies
from genre_lightning.predicting.many import predict_csv
from genre_lightning.predicting.printing import CommandError
from genre_lightning.predicting.tables import MovieRows
from tests.datasets import movie
from tests.fuzz.hostile import FORMULAS
from tests.fuzz.mutations import mutated, seeds

MOVIES = (
    "id,title,poster,genres,split,synopsis\r\n"
    '1,Heat (1995),posters/heat.jpg,Action|Crime,train,"A thief, ""Neil"", plans."\r\n'
    '2,"Godfather, The (1972)",,Crime|Drama,test,"Two\nlines"\r\n'
    "3,Léon (1994),posters/none.jpg,Action,val,\r\n"
    f'4,"{FORMULAS[0]}",a,Action,,{FORMULAS[3]}\r\n'
).encode()
IDS = b"id,cast,year\n1,Al Pacino,1995\n2,Marlon Brando,1972\n"
VECTORS = b"id,a,b\n1,0.5,-3\n2,1e3,7\n"
#: Tables with a NUL byte, which once ended in a traceback.
NULS = (b"title,poster,genres\nHeat,a\0b/c.jpg,Action\n", b"title,poster\nHeat,a\0b.jpg\n")


def assert_read_or_refused(path: Path, read: Callable[[], object], seed: int) -> None:
    """Either the file can be read, or the message names it, in one line."""
    try:
        read()
    except UserError as error:
        message = str(error)
        assert "\n" not in message.strip() and path.name in message, f"seed {seed}: {message}"
        assert len(message) < 2000, f"seed {seed}"


def test_damaged_manifests(tmp_path: Path) -> None:
    path = tmp_path / "movies.csv"
    store = Store(tmp_path / "cache", workers=1, progress=False)

    def read() -> None:
        movies = read_movies("manifest", path=path).movies
        if seed < 40:  # also look for the posters that it names
            PixelsInput(size=32).open([m.value("poster") for m in movies], range(0), store)  # type: ignore[arg-type]

    for seed in seeds(400):
        path.write_bytes(mutated(MOVIES, seed))
        assert_read_or_refused(path, read, seed)


@pytest.mark.parametrize("data", NULS)
def test_nul_byte_is_reported_with_its_line(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "movies.csv"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"movies\.csv.* has a NUL byte \(line 2\)"):
        read_manifest(path)
    with pytest.raises(CommandError, match=r"movies\.csv:2: this line has a NUL byte"):
        list(MovieRows(io.BytesIO(data), path, {"poster": "poster"}).movies())


def test_damaged_columns_files(tmp_path: Path) -> None:
    path = tmp_path / "more.csv"
    movies = MovieSet([movie(id="1"), movie(id="2", title="Alien")], ("Action",))
    for seed in seeds(200):
        path.write_bytes(mutated(IDS, seed))
        assert_read_or_refused(path, lambda: join_columns(movies, path), seed)


def test_damaged_vectors_files(tmp_path: Path) -> None:
    path = tmp_path / "vectors.csv"
    for seed in seeds(200):
        path.write_bytes(mutated(VECTORS, seed))
        assert_read_or_refused(path, lambda: read_vectors(path), seed)


def test_damaged_rows_to_predict(tmp_path: Path) -> None:
    kinds = {"title": "text", "poster": "poster"}
    for seed in seeds(400):
        data = mutated(MOVIES, seed)
        try:
            list(MovieRows(io.BytesIO(data), tmp_path / "in.csv", kinds).movies())
        except CommandError as error:
            assert "in.csv" in str(error), f"seed {seed}"


def test_predictions_of_damaged_tables(tiny_checkpoint: Path, tmp_path: Path) -> None:
    predictor = GenrePredictor.from_checkpoint(tiny_checkpoint, "cpu")
    path, out = tmp_path / "in.csv", tmp_path / "out.csv"
    for seed in seeds(25):
        path.write_bytes(mutated(MOVIES, seed))
        out.unlink(missing_ok=True)
        try:
            predict_csv(predictor, path, out)
        except UserError:
            assert not out.exists(), f"seed {seed}"
        else:
            assert out.exists(), f"seed {seed}"
