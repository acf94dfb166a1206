"""Damaged dataset zips give movies, or an error message that names the file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from genre_lightning.movies.ml1m import read_ml1m
from genre_lightning.movies.movie import DataError
from genre_lightning.movies.readers import read_movies
from genre_lightning.movies.unzip import unpack
from tests.datasets import poster_of
from tests.fuzz.hostile import jpeg, with_damaged_entry, zip_of
from tests.fuzz.mutations import mutated, seeds

ROWS = "".join(f"{n}::Movie {n} (19{n})::Action|Drama\n" for n in range(10, 90))
FILES = {
    "movies_train.dat": ROWS.encode(),
    "movies_test.dat": b"1::Heat (1995)::Action\n",
    "genres.txt": b"Action\nDrama\n",
    "ml1m-images/1.jpg": jpeg(),
    "ml1m-images/10.jpg": jpeg(quality=20),
}
METHODS = {
    "stored": zipfile.ZIP_STORED,
    "deflate": zipfile.ZIP_DEFLATED,
    "bzip2": zipfile.ZIP_BZIP2,
    "lzma": zipfile.ZIP_LZMA,
}


@pytest.mark.parametrize("method", METHODS)
def test_damaged_zips(method: str, tmp_path: Path) -> None:
    valid = zip_of(FILES, METHODS[method])
    for seed in seeds(50):
        path = tmp_path / f"{seed}.zip"
        path.write_bytes(mutated(valid, seed))
        try:
            for movie in read_movies("ml1m", root=path).movies:
                poster = poster_of(movie)
                if poster is not None:
                    poster.read_bytes()
        except DataError as error:
            assert len(str(error)) < 1000, f"seed {seed}"
        except OSError as error:  # of a single poster, which is then masked
            assert str(error), f"seed {seed}"
        try:
            unpack(path, tmp_path / f"{seed}")
        except DataError as error:
            assert "zip" in str(error), f"seed {seed}"


@pytest.mark.parametrize("method", METHODS)
def test_damaged_zip_entry_is_reported(method: str, tmp_path: Path) -> None:
    valid = zip_of(FILES, METHODS[method])
    path = tmp_path / "ml1m.zip"
    path.write_bytes(with_damaged_entry(valid, "movies_train.dat"))
    with pytest.raises(DataError, match=r"ml1m\.zip can't be read as a zip"):
        read_ml1m(path)
    path.write_bytes(with_damaged_entry(valid, "ml1m-images/1.jpg"))
    posters = {movie.id: poster_of(movie) for movie in read_ml1m(path).movies}
    damaged, good = posters["1"], posters["10"]
    assert damaged is not None and good is not None
    with pytest.raises(OSError):
        damaged.read_bytes()
    assert good.read_bytes() == FILES["ml1m-images/10.jpg"]
