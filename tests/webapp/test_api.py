"""Responses of the API over real connections."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genre_lightning import GenrePredictor
from genre_lightning.inputs.year import YearInput
from genre_lightning.webapp.api import MAX_CHARACTERS, MAX_POSTER_BYTES, describe
from tests.webapp.serving import Served, movie, serving

HEAT = "/api/heat?branch=poster_resnet"


@pytest.mark.parametrize(
    ("with_title", "with_poster"),
    [(True, True), (True, False), (False, True)],
    ids=["both", "title", "poster"],
)
def test_scores_are_the_predictors_and_parts_add_up(
    served: Served, predictor: GenrePredictor, poster: bytes, with_title: bool, with_poster: bool
):
    title = "Léon: The Professional (1994)" if with_title else None
    image = poster if with_poster else None
    answer = served.ask("POST", "/api/predict", movie(title=title, poster=image))
    assert answer.status == 200
    found = answer.json()
    (expected,) = predictor.predict([title], [image])
    assert found["columns"] == {"title": title, "poster": True if with_poster else None}
    assert found["problems"] == {}
    assert found["predicted"] == list(expected.genres)
    assert [genre["name"] for genre in found["genres"]] == [name for name, _ in expected.ranked()]
    explained = found["explanations"]
    assert set(explained) == {
        *(["title_tfidf"] if with_title else []),
        *(["poster_resnet"] if with_poster else []),
    }
    for genre in found["genres"]:
        name, branches = genre["name"], genre["branches"]
        assert genre["score"] == pytest.approx(expected.scores[name], abs=1e-6)
        assert genre["threshold"] == predictor.thresholds[name]
        assert genre["predicted"] == (name in expected.genres)
        parts = genre["bias"] + sum(branches.values())
        assert parts == pytest.approx(genre["logit"], abs=1e-9)
        assert 1 / (1 + np.exp(-parts)) == pytest.approx(genre["score"], abs=1e-5)
        assert (branches["poster_resnet"] != 0) == with_poster
        assert (branches["title_tfidf"] != 0) == with_title
        if with_title:
            words = sum(word["adds"][name] for word in explained["title_tfidf"]["parts"])
            assert words == pytest.approx(branches["title_tfidf"], abs=1e-4)
    if title is not None:
        assert explained["title_tfidf"]["kind"] == "words" and explained["title_tfidf"]["exact"]
        parts = explained["title_tfidf"]["parts"]
        words = [word["text"] for word in parts if word["kind"] == "word"]
        assert words == ["Léon", "The", "Professional"]
        assert all(title[slice(*word["span"])] in word["text"] for word in parts)
    if with_poster:
        assert explained["poster_resnet"]["kind"] == "heat map"


def test_the_year_of_any_branch_is_asked_for(make_checkpoint: Callable[..., Path]):
    branch_input = YearInput("title")
    branch_input.years = (1979, 2001)
    branches = {"title_year": (branch_input, {"name": "embedding_head"})}
    path = make_checkpoint(title=None, poster=None, more=branches)
    (column,) = describe(GenrePredictor.from_checkpoint(path, "cpu"), "best.ckpt")["columns"]
    assert column["name"] == "title" and column["year"]


def test_other_columns_are_sent_by_name(wider: GenrePredictor, poster: bytes):
    with serving(wider) as server:
        model = server.ask("GET", "/api/model").json()
        assert [(column["name"], column["of"]) for column in model["columns"]] == [
            ("title", "text"),
            ("poster", "poster"),
            ("synopsis", "text"),
        ]
        assert [(column["long"], column["year"]) for column in model["columns"]] == [
            (False, True),
            (True, False),
            (True, False),
        ]
        assert {branch["name"]: branch["label"] for branch in model["branches"]} == {
            "title_tfidf": "title",
            "poster_resnet": "poster",
            "plot": "synopsis",
        }
        body = movie(synopsis="A thief.", poster=poster)
        found = server.ask("POST", "/api/predict", body).json()
        assert found["columns"] == {"title": None, "poster": True, "synopsis": "A thief."}
        assert set(found["explanations"]) == {"poster_resnet", "plot"}
        (expected,) = wider.predict(None, [poster], synopsis=["A thief."])
        scores = {genre["name"]: genre["score"] for genre in found["genres"]}
        assert scores == pytest.approx(expected.scores, abs=1e-6)
        for genre in found["genres"]:
            parts = genre["bias"] + sum(genre["branches"].values()) + genre["cooccurrence"]
            assert parts == pytest.approx(genre["logit"], abs=1e-9)
            assert 1 / (1 + np.exp(-parts)) == pytest.approx(genre["score"], abs=1e-5)
        message = server.ask("POST", "/api/predict").json()["error"]["message"]
        assert "type the title or synopsis or choose the poster" in message


def test_a_title_with_a_broken_poster_is_predicted(served: Served, predictor: GenrePredictor):
    body = movie(title="Heat (1995)", poster=b"a text and no picture")
    answer = served.ask("POST", "/api/predict", body)
    assert answer.status == 200
    found = answer.json()
    assert found["columns"] == {"title": "Heat (1995)", "poster": None}
    assert list(found["problems"]) == ["poster"]
    assert found["problems"]["poster"].startswith("This file can't be read as a picture: not an")
    assert list(found["explanations"]) == ["title_tfidf"]
    (expected,) = predictor.predict(["Heat (1995)"])
    assert {g["name"]: g["score"] for g in found["genres"]} == pytest.approx(expected.scores)


def test_a_poster_is_read_and_encoded_once(
    served: Served, predictor: GenrePredictor, poster: bytes, monkeypatch: pytest.MonkeyPatch
):
    input_class = type(predictor.model.inputs["poster_resnet"])
    calls = []

    def counted(name: str) -> Callable[..., object]:
        original = getattr(input_class, name)

        def call(self: object, value: object) -> object:
            calls.append(name)
            return original(self, value)

        return call

    for name in ("read", "encode"):
        monkeypatch.setattr(input_class, name, counted(name))
    answer = served.ask("POST", "/api/predict", movie(title="Heat", poster=poster))
    assert answer.status == 200 and calls == ["read", "encode"]


def test_a_branch_that_cannot_be_explained_says_why(
    served: Served, poster: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("genre_lightning.explain.table.EXPLAINERS", {})
    found = served.ask("POST", "/api/predict", movie(title="Heat")).json()
    assert found["explanations"]["title_tfidf"]["kind"] == "none"
    assert "can't be explained" in found["explanations"]["title_tfidf"]["problem"]
    answer = served.ask("POST", "/api/heat?branch=poster_resnet&genre=Action", poster)
    assert (answer.status, answer.code) == (422, "not_explained")


def test_the_model_endpoint_describes_the_model(served: Served, predictor: GenrePredictor):
    found = served.ask("GET", "/api/model").json()
    assert found["genres"] == list(predictor.genres)
    assert found["checkpoint"] == "tiny.ckpt"
    assert [column["name"] for column in found["columns"]] == ["title", "poster"]
    assert found["max_poster_bytes"] == MAX_POSTER_BYTES


def test_heat_maps_have_the_posters_proportions_and_differ(served: Served, poster: bytes):
    pictures = []
    for genre in ("Action", "Comedy"):
        answer = served.ask("POST", f"/api/heat?branch=poster_resnet&genre={genre}", poster)
        assert answer.status == 200 and answer.headers["content-type"] == "image/png"
        with Image.open(io.BytesIO(answer.body)) as image:
            assert image.width / image.height == pytest.approx(120 / 180, abs=0.01)
            pictures.append(np.asarray(image))
    assert (pictures[0] != pictures[1]).any()


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/api/predict", None, 400, "nothing_given"),
        ("/api/predict", movie(title="  ", poster=None), 400, "nothing_given"),
        ("/api/predict", movie(title="a" * (MAX_CHARACTERS + 1)), 400, "text_too_long"),
        ("/api/predict", movie(poster=b"a text and no picture"), 415, "not_an_image"),
        ("/api/predict", movie(poster=b"\x89PNG\r\n\x1a\n"), 415, "not_an_image"),
        ("/api/predict", movie(title="Heat", cast="Pacino"), 422, "no_branch"),
        ("/api/predict", b"no JSON", 400, "bad_request"),
        ("/api/predict", b"\xff\xfe", 400, "bad_request"),
        ("/api/predict", b"[" * 100_000, 400, "bad_request"),
        ("/api/predict", b"[]", 400, "bad_request"),
        ("/api/predict", b'{"title": 7}', 400, "bad_request"),
        ("/api/predict", rb'{"title": "Heat \ud83d"}', 400, "bad_request"),
        ("/api/predict", rb'{"\ud83d": 7}', 400, "bad_request"),
        ("/api/predict", b'{"poster": "no base64!"}', 400, "bad_request"),
        ("/api/predict", '{"poster": "é"}'.encode(), 400, "bad_request"),
        (HEAT + "&genre=Action", b"a text and no picture", 415, "not_an_image"),
        (HEAT + "&genre=Action", None, 400, "nothing_given"),
        (HEAT + "&genre=Tragedy", b"x", 404, "unknown_genre"),
        ("/api/heat", b"x", 404, "unknown_genre"),
        ("/api/heat?genre=Action", b"x", 404, "unknown_branch"),
        ("/api/heat?genre=Action&branch=title_tfidf", b"x", 404, "unknown_branch"),
        ("/api/other", None, 404, "http"),
        ("/", None, 405, "http"),
        ("/../demo.py", None, 404, "http"),
    ],
)
def test_invalid_requests_are_refused(
    served: Served, path: str, body: bytes | str | None, status: int, code: str
):
    answer = served.ask("POST", path, body)
    assert (answer.status, answer.code) == (status, code)


def test_a_wrong_method_is_answered_with_the_allowed_methods(served: Served):
    assert served.ask("GET", "/api/predict").headers["allow"] == "POST"
    assert set(served.ask("POST", "/api/model").headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_anything_but_plain_base64_is_refused_with_the_reason(
    served: Served, poster: bytes, prefix: str
):
    text = base64.encodebytes(poster).decode() if not prefix else base64.b64encode(poster).decode()
    answer = served.ask("POST", "/api/predict", movie(poster=prefix + text))
    assert (answer.status, answer.code) == (400, "bad_request")
    assert "without line breaks and without a data: prefix" in answer.json()["error"]["message"]


@pytest.mark.parametrize("column", ["title", "poster"])
def test_a_column_without_a_branch_is_refused(
    make_checkpoint: Callable[..., Path], poster: bytes, column: str
):
    other = {"title": "poster", "poster": "title"}[column]
    single = GenrePredictor.from_checkpoint(make_checkpoint(**{column: None}), "cpu")
    with serving(single) as server:
        values: dict[str, str | bytes] = {"title": "Heat", "poster": poster}
        answer = server.ask("POST", "/api/predict", movie(**{column: values[column]}))
        assert (answer.status, answer.code) == (422, "no_branch")
        message = answer.json()["error"]["message"]
        assert message == f"This model has no branch for the {column}: it looks at {other}."
        empty = server.ask("POST", "/api/predict").json()["error"]["message"]
        assert f"the {other}" in empty and f"the {column}" not in empty
