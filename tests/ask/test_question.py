"""Questions: variants of prompts, examples, the schema, and keys that identify them."""

from __future__ import annotations

import base64
import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genre_lightning.ask.answer import read_answer
from genre_lightning.ask.poster import PosterFormat
from genre_lightning.ask.question import Example, Prompt, Questioner
from genre_lightning.ask.run import choose_rows, draw_examples
from genre_lightning.errors import UserError
from genre_lightning.inputs.decode import PosterError
from genre_lightning.movies import demo, mmimdb
from genre_lightning.movies.ml1m import read_ml1m
from tests.ask.asked_movies import draw_poster, make_movie, make_prompt, make_questioner
from tests.ask.loopback import GENRES


def request_bodies(questioner: Questioner, number: int = 7, **columns: str) -> list[dict[str, Any]]:
    movie = make_movie(number, None, **columns)
    return list(questioner.bodies(movie.id, questioner.texts(movie), None))


def text_of(body: dict[str, Any]) -> str:
    return "\n".join(str(message["content"]) for message in body["messages"])


@pytest.mark.parametrize("size", [(600, 900), (900, 600), (40, 60), (2000, 3)])
def test_a_poster_keeps_its_proportions(size: tuple[int, int], tmp_path: Path) -> None:
    poster = draw_poster(tmp_path / "a.png", size)
    sent = PosterFormat(side=300).encode(poster.read_bytes())
    head, _, data = sent.url.partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == "data:image/jpeg;base64" and image.format == "JPEG"
    if min(size) < 28:
        assert image.size == (300, 28)
    elif max(size) <= 300:
        assert image.size == size
    else:
        assert max(image.size) == 300
        assert image.width / image.height == pytest.approx(size[0] / size[1], rel=0.01)


def test_encoded_poster_looks_the_same(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 400, dtype=np.uint8)
    pixels = np.stack([np.tile(ramp, (300, 1))] * 3, axis=2)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = PosterFormat(side=200).encode((tmp_path / "a.png").read_bytes()).url.partition(",")[2]
    actual = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), dtype=float)
    expected = np.linspace(0, 255, 200)
    assert np.abs(actual[..., 0] - expected).max() < 6


def test_unreadable_poster_and_invalid_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PosterError):
        PosterFormat().encode(b"no image")
    wrong: list[dict[str, Any]] = [{"side": 3}, {"side": 9999}, {"quality": 0}, {"side": "512"}]
    for bad in wrong:
        with pytest.raises(UserError, match=r"poster\."):
            PosterFormat(**bad)


def test_a_fingerprint_changes_with_file_and_format(tmp_path: Path) -> None:
    one, other = draw_poster(tmp_path / "a.png"), draw_poster(tmp_path / "b.png")
    formats = [PosterFormat(), PosterFormat(side=100), PosterFormat(quality=50)]
    fingerprints = {form.fingerprint(poster) for form in formats for poster in (one, other)}
    assert len(fingerprints) == 6 and PosterFormat().fingerprint(one) in fingerprints


def test_zero_shot_shows_the_chosen_columns(tmp_path: Path) -> None:
    questioner = make_questioner(show=["title", "synopsis"])
    (body,) = request_bodies(questioner, synopsis="A {{ thief }} plans.", cast="Nobody")
    text = text_of(body)
    assert "Title: Movie 7 (1990)" in text and "Synopsis: A {{ thief }} plans." in text
    assert "Nobody" not in text and "poster" not in text and ", ".join(GENRES) in text
    assert body["messages"][-1]["content"].count("\n\n") == 0
    assert body["model"] == "m" and body["max_tokens"] == 300
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] is True and list(schema["schema"]["properties"]) == [*GENRES, "why"]


def test_a_poster_is_shown_as_an_image(tmp_path: Path) -> None:
    questioner = make_questioner(show=["poster"])
    sent = questioner.poster.encode(draw_poster(tmp_path / "a.png").read_bytes())
    (body,) = questioner.bodies("7", {}, sent)
    text, image = body["messages"][-1]["content"]
    assert image == {"type": "image_url", "image_url": {"url": sent.url}}
    assert "poster" in text["text"] and "Movie" not in text["text"]


def test_null_parameters_are_omitted_and_others_are_sent() -> None:
    (body,) = request_bodies(make_questioner(parameters={"temperature": None, "top_p": 0.5}))
    assert "temperature" not in body and body["top_p"] == 0.5
    with pytest.raises(UserError, match=r"parameters.stream"):
        make_questioner(parameters={"stream": True})


def test_only_genres_of_the_dataset_are_defined() -> None:
    (body,) = request_bodies(make_questioner(prompt=make_prompt("definitions")))
    text = text_of(body)
    assert "- Horror: meant to frighten" in text and "Western" not in text


def test_every_genre_of_demo_and_mmimdb_has_a_definition() -> None:
    assert set(demo.GENRES) | set(mmimdb.GENRES) <= set(make_prompt("definitions").definitions)


def test_every_genre_of_movielens_has_a_definition(ml1m_root: Path) -> None:
    assert set(read_ml1m(ml1m_root).genres) <= set(make_prompt("definitions").definitions)


def examples_of(prompt: Prompt, show: tuple[str, ...] = ("title",), seed: int = 0) -> list[Example]:
    movies = [make_movie(number) for number in range(40)]
    train = np.arange(0, 40, 2)
    return draw_examples(movies, train, prompt, show, PosterFormat(), seed)


def test_examples_come_from_train_and_depend_on_the_seed() -> None:
    prompt = make_prompt("few_shot")
    ids = [[example.id for example in examples_of(prompt, seed=seed)] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    assert all(int(number) % 2 == 0 for number in ids[0]) and len(set(ids[0])) == 9


def test_few_shot_shows_examples_with_valid_answers() -> None:
    prompt = make_prompt("few_shot")
    shown = examples_of(prompt)
    (body,) = request_bodies(make_questioner(prompt=prompt, examples=shown, show=["title"]))
    turns = body["messages"][1:-1]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 8
    for index, example in enumerate(shown[:8]):
        assert example.columns["title"] in turns[2 * index]["content"]
        scores, _ = read_answer(turns[2 * index + 1]["content"], GENRES)
        named = {g for g, s in zip(GENRES, scores, strict=True) if s == 1}
        assert named == set(example.genres)


def test_movie_is_never_its_own_example() -> None:
    shown = examples_of(make_prompt("few_shot"))
    questioner = make_questioner(prompt=make_prompt("few_shot"), examples=shown, show=["title"])
    inside, outside = shown[3].id, "1"
    for number in (inside, outside):
        (body,) = request_bodies(questioner, int(number))
        titles = [m["content"] for m in body["messages"] if m["role"] == "user"]
        assert len(titles) == 9
        assert sum(f"Movie {number} (1990)" in title for title in titles) == 1
        assert sum(shown[8].columns["title"] in title for title in titles) == (number == inside)


def test_example_posters_are_sent(tmp_path: Path) -> None:
    posters = [draw_poster(tmp_path / f"{n}.png", seed=n) for n in range(4)]
    movies = [make_movie(n, posters[n] if n < 3 else None) for n in range(4)]
    prompt = make_prompt("few_shot", examples=2, example_posters=True)
    shown = draw_examples(movies, np.arange(4), prompt, ["poster"], PosterFormat(), 0)
    assert {example.id for example in shown} == {"0", "1", "2"}
    (body,) = request_bodies(make_questioner(prompt=prompt, examples=shown, show=["poster"]))
    sent = [m["content"][1]["image_url"]["url"] for m in body["messages"][1:-1:2]]
    assert sent == [example.poster.url for example in shown[:2] if example.poster is not None]


def test_impossible_examples_are_refused() -> None:
    with pytest.raises(UserError, match=r"prompt.example_posters=true"):
        examples_of(make_prompt("few_shot"), show=("poster",))
    with pytest.raises(UserError, match=r"train has only 20 movies with all of title"):
        examples_of(make_prompt("few_shot", examples=20))


def test_logprobs_asks_about_each_genre() -> None:
    shown = examples_of(make_prompt("few_shot"))
    questioner = make_questioner(
        answers="logprobs", show=["title"], prompt=make_prompt("few_shot"), examples=shown
    )
    bodies = request_bodies(questioner)
    assert len(bodies) == 4
    for genre, body in zip(GENRES, bodies, strict=True):
        assert f"the genre {genre}?" in body["messages"][-1]["content"]
        assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 20)
        assert "response_format" not in body and "JSON" not in text_of(body)
        replies = [m["content"] for m in body["messages"] if m["role"] == "assistant"]
        assert replies == ["yes" if genre in example.genres else "no" for example in shown[:8]]


def key_of(questioner: Questioner, image: str | None = "d", **columns: str) -> str:
    movie = make_movie(7, None, **columns)
    return questioner.key(movie.id, questioner.texts(movie), image)


def test_a_key_changes_with_whatever_changes_the_question() -> None:
    few_shot = make_prompt("few_shot")
    keys = [
        key_of(make_questioner()),
        key_of(make_questioner(), image="e"),
        key_of(make_questioner(), image=None),
        key_of(make_questioner(), title="Another (1990)"),
        key_of(make_questioner(base_url="http://127.0.0.1:2/v1")),
        key_of(make_questioner(model="n")),
        key_of(make_questioner(genres=GENRES[:3])),
        key_of(make_questioner(genres=GENRES[::-1])),
        key_of(make_questioner(prompt=make_prompt("definitions"))),
        key_of(make_questioner(parameters={"temperature": 0.5})),
        key_of(make_questioner(why_max_length=30)),
        key_of(make_questioner(answers="logprobs")),
        key_of(make_questioner(prompt=few_shot, examples=examples_of(few_shot))),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of(make_questioner()) == keys[0]


def test_restored_questioner_asks_the_same(tmp_path: Path) -> None:
    posters = [draw_poster(tmp_path / f"{n}.png", seed=n) for n in range(3)]
    prompt = make_prompt("few_shot", examples=2, example_posters=True)
    shown = draw_examples(
        [make_movie(n, posters[n]) for n in range(3)],
        np.arange(3),
        prompt,
        ["title", "poster"],
        PosterFormat(),
        0,
    )
    questioner = make_questioner(prompt=prompt, examples=shown, why_max_length=9)
    restored = Questioner.from_plain(json.loads(json.dumps(questioner.to_plain())))
    assert request_bodies(restored) == request_bodies(questioner)
    assert key_of(restored) == key_of(questioner)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"show": []}, "show="),
        ({"show": ["title", "title"]}, r"show=\[title,title\]"),
        ({"answers": "words"}, "answers=words must be one of json, logprobs"),
        ({"why_max_length": 0}, "why_max_length=0"),
        ({"top_logprobs": 1}, "top_logprobs=1"),
        ({"prompt": Prompt("mine", "{{ genres", "x")}, "prompt=mine: not a Jinja template"),
        ({"prompt": Prompt("mine", "{{ genrez }}", "x")}, "prompt=mine: 'genrez' is undefined"),
        (
            {"prompt": Prompt("mine", "{{ genres.__class__.__mro__ }}", "x")},
            "prompt=mine: .*unsafe",
        ),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_questioner(**settings)


def test_smaller_choice_is_part_of_a_larger_one() -> None:
    rows = np.arange(100, 200)
    chosen = [choose_rows(rows, count) for count in (10, 30, 100, 500)]
    assert [len(rows) for rows in chosen] == [10, 30, 100, 100]
    for fewer, more in pairwise(chosen):
        assert set(fewer) <= set(more) and (np.diff(fewer) > 0).all()
    assert (choose_rows(rows, None) == rows).all()
