"""Which movies the gallery shows, and that what it says of them adds up."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genre_lightning.movies.movie import PosterFile
from genre_lightning.report.gallery import (
    Pick,
    explain_genre,
    make_card,
    margins,
    most_confident,
    thumbnail,
)

THRESHOLDS = np.array([0.5, 0.2], dtype=np.float32)


def test_margins_are_differences_of_logits():
    assert margins(np.array([[0.5, 0.5]]), THRESHOLDS)[0] == pytest.approx([0.0, np.log(4.0)])
    assert np.isfinite(margins(np.array([[0.0, 1.0]]), np.array([1.0, 0.0]))).all()


def test_each_list_holds_what_it_says_surest_first():
    scores = np.array(
        [
            [0.9, 0.1],  # right, sure
            [0.6, 0.1],  # right, less so
            [0.8, 0.19],  # second missed, closely
            [0.1, 0.9],  # second invented
            [0.3, 0.1],  # first missed
            [0.1, 0.1],  # right, but nothing predicted
            [0.95, 0.21],  # right, the second one barely
        ],
        dtype=np.float32,
    )
    targets = np.array([[1, 0], [1, 0], [1, 1], [0, 0], [1, 0], [0, 0], [1, 1]])
    found = most_confident(scores, targets, THRESHOLDS, count=5)
    assert found["right"] == [Pick(0, 0), Pick(1, 0), Pick(6, 1)]
    assert found["invented"] == [Pick(3, 1)]
    assert found["missed"] == [Pick(4, 0), Pick(2, 1)]


def test_no_list_is_filled_by_one_genre_or_shows_a_movie_twice():
    generator = np.random.default_rng(0)
    scores = generator.random((200, 3)).astype(np.float32)
    targets = generator.random((200, 3)) < 0.4
    found = most_confident(scores, targets, np.full(3, 0.5), count=5, per_genre=2)
    for picks in found.values():
        assert len(picks) == 5
        assert len({pick.index for pick in picks}) == 5
        assert max(np.bincount([pick.genre for pick in picks])) <= 2


def test_nothing_to_show_is_no_error():
    found = most_confident(np.zeros((4, 2), np.float32), np.zeros((4, 2)), THRESHOLDS, count=3)
    assert found == {"right": [], "invented": [], "missed": []}


def test_parts_of_an_explanation_add_up(case: Any):
    pixels = np.random.default_rng(1).integers(256, size=(32, 32, 3), dtype=np.uint8)
    for index in (0, 7):
        title = case.data.movie_set.movies[index].title
        for genre in range(4):
            found = explain_genre(case.model, title, pixels, genre)
            assert found.title is not None and found.poster is not None
            assert found.bias + found.title + found.poster == pytest.approx(found.logit)
            words = sum(value for _, value in found.words) + found.other_words
            assert words == pytest.approx(found.title, abs=1e-4)


def test_a_card_explains_the_score_it_shows(case: Any):
    card = make_card(case.model, case.data, case.scores, Pick(0, 1))
    assert card.score == pytest.approx(1 / (1 + np.exp(-card.explanation.logit)), abs=1e-5)
    movie = case.data.movie_set.movies[int(case.scores.rows[0])]
    assert card.true_genres == list(movie.genres)
    assert {g.genre for g in card.genres if g.verdict in ("hit", "missed")} == set(movie.genres)
    shown = [g.score for g in card.genres]
    assert shown == sorted(shown, reverse=True)


def open_uri(uri: str) -> Image.Image:
    kind, _, data = uri.partition(";base64,")
    assert kind == "data:image/jpeg"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize(
    ("number", "what"),
    [(0, ""), (3, "poster unreadable"), (4, "poster not there"), (5, "no poster")],
)
def test_cards_say_why_there_is_no_poster(case: Any, number: int, what: str):
    card = make_card(case.model, case.data, case.scores, Pick(number, 0))
    assert card.no_poster == what
    if what:
        assert card.poster is None and card.heat is None and not card.nothing_speaks
        assert card.explanation.poster == 0.0
        return
    assert card.poster is not None
    assert open_uri(card.poster).size == (160, 240)  # of 40 x 60
    if card.heat is not None:
        assert open_uri(card.heat).size == (160, 240)
    assert (card.heat is None) == card.nothing_speaks


def save(path: Path, size: tuple[int, int], **options: Any) -> PosterFile:
    Image.new("RGB", size, "red").save(path, **options)
    return PosterFile(path, None, path.stat().st_size, 0)


def test_thumbnails_keep_proportions_within_bounds(tmp_path: Path):
    upright = Image.Exif()
    upright[0x0112] = 6  # a quarter turn
    turned, _ = thumbnail(save(tmp_path / "turned.jpg", (60, 40), exif=upright))
    banner, _ = thumbnail(save(tmp_path / "banner.png", (600, 40)))
    assert turned is not None and turned.size == (160, 240)
    assert banner is not None and banner.size == (240, 240)
