from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from genre_lightning import GenrePredictor
from genre_lightning.inputs.terms import TermsInput
from tests.webapp.serving import Served, serving


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint: Path) -> GenrePredictor:
    return GenrePredictor.from_checkpoint(tiny_checkpoint, "cpu")


@pytest.fixture(scope="module")
def served(predictor: GenrePredictor) -> Iterator[Served]:
    with serving(predictor) as server:
        yield server


@pytest.fixture(scope="module")
def poster() -> bytes:
    """A PNG file of a drawn poster, 120 x 180."""
    image = Image.new("RGB", (120, 180), "#223355")
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 30, 100, 110), fill="#dd8833")
    draw.rectangle((10, 130, 110, 165), fill="#eeeecc")
    png = io.BytesIO()
    image.save(png, "PNG")
    return png.getvalue()


@pytest.fixture(scope="module")
def poster_file(poster: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("posters") / "drawn.png"
    path.write_bytes(poster)
    return path


@pytest.fixture(scope="module")
def wider(make_checkpoint: Callable[..., Path]) -> GenrePredictor:
    """A predictor on title, poster and synopsis, with stacking and label sets."""
    synopsis = TermsInput("synopsis", vocabulary_size=64, analyzer="word", ngram_range=(1, 1))
    synopsis.vectorizer.fit(["A thief plans a last heist.", "Toys live happily."])
    more = {"plot": (synopsis, {"name": "terms_mlp", "hidden": 8})}
    return GenrePredictor.from_checkpoint(
        make_checkpoint(more=more, seed=1, stacking=True, label_sets=True), "cpu"
    )
