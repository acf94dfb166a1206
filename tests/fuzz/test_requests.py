"""Damaged requests to the web app are answered or get an error message; none fails."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from genre_lightning import GenrePredictor
from genre_lightning.webapp.api import ApiError, heat_picture, predict_movie, read_movie
from tests.fuzz.hostile import POSTERS, jpeg
from tests.fuzz.mutations import mutated, seeds


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint: Path) -> GenrePredictor:
    return GenrePredictor.from_checkpoint(tiny_checkpoint, "cpu")


def body(image: bytes) -> bytes:
    text = base64.b64encode(image).decode()
    return json.dumps({"title": "Léon: The Professional (1994)", "poster": text}).encode()


def ask(predictor: GenrePredictor, request: bytes) -> dict | None:
    try:
        return predict_movie(predictor, read_movie(predictor, request))
    except ApiError as error:
        assert 400 <= error.status < 500 and error.code and error.message
        return None


def test_damaged_requests(predictor: GenrePredictor) -> None:
    valid = body(jpeg(quality=10))
    assert ask(predictor, valid) is not None
    for seed in seeds(40):
        ask(predictor, mutated(valid, seed))


@pytest.mark.filterwarnings("ignore")
def test_hostile_poster_leaves_the_title_usable(predictor: GenrePredictor) -> None:
    for name, (make, _) in POSTERS.items():
        answer = ask(predictor, body(make()))
        assert answer is not None, name
        assert list(answer["problems"]) == ["poster"] and answer["columns"]["title"], name


@pytest.mark.filterwarnings("ignore")
def test_damaged_images_for_heat_maps(predictor: GenrePredictor) -> None:
    for seed in seeds(6):
        try:
            png = heat_picture(predictor, "poster_resnet", "Drama", mutated(jpeg(), seed))
        except ApiError as error:
            assert error.code == "not_an_image", f"seed {seed}"
        else:
            assert png.startswith(b"\x89PNG"), f"seed {seed}"
