"""The card that a notebook shows for a prediction."""

from __future__ import annotations

import base64
import html
import io
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genre_lightning import GenrePredictor
from genre_lightning.errors import InputError
from genre_lightning.explain.parts import score_parts
from genre_lightning.predicting.predictor import Prediction
from tests.pages import not_isolated

TITLE = 'Heat <script>alert(1)</script> & "Alien" (1995)'


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint: Path) -> GenrePredictor:
    return GenrePredictor.from_checkpoint(tiny_checkpoint, device="cpu", workers=1)


@pytest.fixture(scope="module")
def poster() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)


def text_of(prediction: Prediction) -> str:
    """The visible text of a prediction's card."""
    page = re.sub(r"<style>.*?</style>", "", prediction._repr_html_(), flags=re.DOTALL)
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", page).split()))


def test_every_genre_has_its_score_and_threshold(predictor: GenrePredictor) -> None:
    (prediction,) = predictor.predict([TITLE])
    shown = text_of(prediction)
    assert shown.startswith(TITLE)
    last = 0
    for genre, score in prediction.ranked():
        mark = "✓ " if genre in prediction.genres else ""
        row = f"{genre} {score:.2f} {mark}from {predictor.thresholds[genre]:.2f}"
        assert shown.find(row) > last, row
        last = shown.find(row)
    assert "bias" not in shown and "<img" not in prediction._repr_html_()


def test_a_score_just_below_its_threshold_does_not_look_equal_to_it() -> None:
    prediction = Prediction("Heat", (), {"Action": 0.2107}, thresholds={"Action": 0.2121})
    assert "Action 0.211 from 0.212" in text_of(prediction)


def test_a_very_long_word_is_shortened(predictor: GenrePredictor) -> None:
    (prediction,) = predictor.predict(["Alien" * 200], explain=True)
    words = re.findall(r'<li class="(?:for|against)"><bdi>(\S+)</bdi> ', prediction._repr_html_())
    assert words and set(words) == {("Alien" * 200)[:59] + "…"}


def test_titles_and_errors_are_escaped(predictor: GenrePredictor, poster: np.ndarray) -> None:
    (prediction,) = predictor.predict([TITLE], [poster], explain=True)
    page = prediction._repr_html_()
    assert "<script" not in page and 'alt="Poster of Heat &lt;script&gt;' in page
    wrong = Prediction("<b>", (), {}, "<img src=x>.jpg: can't be read")
    assert "<b>&lt;b&gt;" not in wrong._repr_html_() and "&lt;img src=x&gt;" in wrong._repr_html_()
    assert "<img" not in wrong._repr_html_()


def test_a_right_to_left_title_does_not_reorder_the_card(predictor: GenrePredictor) -> None:
    (prediction,) = predictor.predict(["דרמה! (1995)"], explain=True)
    page = replace(prediction, problem="דרמה.jpg: can't be read")._repr_html_()
    assert "דרמה!" in page
    assert not_isolated(page) == []


def test_the_parts_of_a_score_add_up(predictor: GenrePredictor, poster: np.ndarray) -> None:
    (prediction,) = predictor.predict([TITLE], [poster], explain=True)
    shown = text_of(prediction)
    parts = score_parts(predictor.model, {"title": TITLE, "poster": poster})
    assert prediction.explained_genres()
    for genre in prediction.explained_genres():
        position = predictor.genres.index(genre)
        numbers = re.search(
            rf"{genre} (\S+) = bias (\S+) , title (\S+) , poster (\S+)", shown
        ) or pytest.fail(f"no reasons for {genre}")
        read = [float(number.replace("−", "-")) for number in numbers.groups()]
        assert read[0] == pytest.approx(parts.logits[position], abs=0.006)
        assert read[0] == pytest.approx(sum(read[1:]), abs=0.03)
    assert "Heat" in shown.split("bias", 1)[1]


def test_a_thumbnail_is_embedded(predictor: GenrePredictor, poster: np.ndarray) -> None:
    large = np.asarray(Image.fromarray(poster).resize((1500, 2250)))
    (prediction,) = predictor.predict(None, [large])
    found = re.findall(r'src="([^"]*)"', prediction._repr_html_())
    assert len(found) == 1
    kind, _, data = found[0].partition(";base64,")
    assert kind == "data:image/jpeg"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (160, 240)
    assert len(prediction._repr_html_()) < 60_000


def test_unreadable_posters_are_reported(predictor: GenrePredictor, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"GIF89a, but nothing more")
    gone = tmp_path / "gone.jpg"
    titles = ["Heat (1995)", "Alien (1979)", None]
    found = predictor.predict(titles, [broken, gone, broken], errors="report", explain=True)
    for prediction, message in zip(
        found, ("poster unreadable", "poster not there", "poster unreadable"), strict=True
    ):
        assert message in text_of(prediction) and str(prediction.problem) in text_of(prediction)
    assert found[0].explanation is not None and found[2].explanation is None
    assert found[0].explanation.absent == {"poster_resnet"}
    assert "no poster" in text_of(found[0])
    with pytest.raises(InputError, match=r"broken\.jpg"):
        predictor.predict(titles, [broken, gone, None], explain=True)


def test_predictions_can_be_compared_and_pickled(
    predictor: GenrePredictor, poster: np.ndarray
) -> None:
    one, other = (predictor.predict(["Heat (1995)"], [poster])[0] for _ in range(2))
    assert one == other and "poster" not in repr(one)
    assert pickle.loads(pickle.dumps(one)) == one


def test_styles_apply_only_to_the_card(predictor: GenrePredictor) -> None:
    (prediction,) = predictor.predict(["Heat (1995)"])
    style = prediction._repr_html_().partition("<style>")[2].partition("</style>")[0]
    # Selectors at the top level of the style sheet.
    depth, selectors, text = 0, [], ""
    for character in style:
        if character == "{":
            if depth == 0:
                selectors.append(text.strip())
            depth += 1
        elif character == "}":
            depth -= 1
            text = ""
            continue
        if depth == 0:
            text += character
    assert depth == 0 and len(selectors) == 5
    for selector in selectors:
        assert selector == "@media (prefers-color-scheme: dark)" or all(
            part.strip().endswith(".genre-lightning") for part in selector.split(",")
        ), selector
