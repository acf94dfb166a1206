"""Asking about many movies: once each, with limited concurrency, despite failures."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from genre_lightning.ask import poster as posters
from genre_lightning.ask.answer_file import AnswerFile, Record
from genre_lightning.ask.asking import Asker, Interrupted
from genre_lightning.ask.question import Questioner
from genre_lightning.ask.rate_limit import BudgetError, RateLimit
from genre_lightning.ask.server import ChatServer, ServerError
from genre_lightning.errors import UserError
from genre_lightning.movies.movie import Movie
from tests.ask.asked_movies import ask, draw_poster, make_movie, make_prompt, make_questioner
from tests.ask.loopback import GENRES, Answer, Loopback, good, reply, scores_of

MOVIES = [make_movie(number) for number in range(30)]


def test_each_movie_is_asked_about_once_within_the_concurrency_limit(
    loopback: Loopback, tmp_path: Path
) -> None:
    loopback.answer = lambda number, body: good(body, after=0.02)
    actual = ask(loopback, MOVIES, tmp_path / "answers.jsonl", concurrency=5)
    assert len(loopback.requests) == 30 and len(set(loopback.shown())) == 30
    assert loopback.max_concurrent == 5
    assert sorted(actual) == list(range(30))
    by_title = {text.split("\n")[0]: body for text, body in
                zip(loopback.shown(), loopback.requests, strict=True)}  # fmt: skip
    for number, record in actual.items():
        expected = scores_of(by_title[f"Title: Movie {number} (1990)"])
        why = expected.pop("why")
        assert record.scores == {genre: value / 100 for genre, value in expected.items()}
        assert (record.id, record.why, record.failed) == (str(number), why, None)
        assert (record.asks, record.tokens) == (1, 120)


def test_answered_movies_are_not_asked_about_again(loopback: Loopback, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    first = ask(loopback, MOVIES, path)
    assert ask(loopback, MOVIES, path) == first
    assert len(loopback.requests) == 30 and path.read_text().count("\n") == 30
    # Answers of another run are used, and copied to the own file.
    assert ask(loopback, MOVIES[:5], tmp_path / "own.jsonl", others=[path]) == {
        n: first[n] for n in range(5)
    }
    assert len(loopback.requests) == 30
    assert (tmp_path / "own.jsonl").read_text().count("\n") == 5
    # Another prompt makes it another question.
    ask(loopback, MOVIES[:5], path, prompt=make_prompt("definitions"))
    assert len(loopback.requests) == 35


def test_poster_is_encoded_once_despite_retries_and_reruns(
    loopback: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_backoff: None
) -> None:
    encoded: Counter[int] = Counter()
    encode = posters.PosterFormat.encode

    def counted(self: posters.PosterFormat, data: bytes) -> posters.SentPoster:
        encoded[hash(data)] += 1
        return encode(self, data)

    monkeypatch.setattr(posters.PosterFormat, "encode", counted)
    movies = [make_movie(n, draw_poster(tmp_path / f"{n}.png", seed=n)) for n in range(6)]
    failing = {0: Answer(500), 1: reply("no JSON"), 2: Answer(drop=True)}
    loopback.answer = lambda number, body: failing.get(number) or good(body)
    records = ask(loopback, movies, tmp_path / "answers.jsonl")
    assert len(encoded) == 6 and set(encoded.values()) == {1}
    assert len({record.image for record in records.values()}) == 6
    assert len(loopback.requests) == 9
    assert ask(loopback, movies, tmp_path / "answers.jsonl") == records
    assert set(encoded.values()) == {1} and len(loopback.requests) == 9


def test_missing_and_unreadable_columns_are_not_shown(loopback: Loopback, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    poster = draw_poster(tmp_path / "a.png")
    bad = posters.PosterFile(broken, None, 8, 1)
    movies = [make_movie(0, poster), make_movie(1, bad), make_movie(2)]
    movies.append(Movie("3", {}, ("Drama",), None, ""))
    records = ask(loopback, movies, tmp_path / "answers.jsonl")
    assert [records[n].failed for n in range(4)] == [
        None, None, None, "it has no title and no poster to show",
    ]  # fmt: skip
    pictured = [isinstance(body["messages"][-1]["content"], list) for body in loopback.requests]
    assert Counter(pictured) == {True: 1, False: 2}
    records = ask(loopback, movies, show=["poster"])
    assert [records[n].failed for n in range(4)] == [None, *["it has no poster to show"] * 3]


@pytest.mark.parametrize(
    "bad",
    [
        reply("I think it is a drama."),
        reply(json.dumps({"Drama": 80})),
        reply('{"Action": 1, "Com', finish="length"),
        reply(json.dumps(dict.fromkeys(GENRES, 1) | {"why": "x"}), finish="length"),
        reply(None),
        Answer(500, body=b'{"error": {"message": "The model produced output that does not fit"}}'),
    ],
    ids=["schema ignored", "incomplete", "cut off", "complete, cut off", "no text", "llama.cpp"],
)
def test_invalid_answer_is_asked_again_with_another_seed(
    bad: Answer, loopback: Loopback, tmp_path: Path
) -> None:
    loopback.answer = lambda number, body: bad if number < 2 else good(body)
    records = ask(loopback, MOVIES[:1], tmp_path / "a.jsonl")
    assert records[0].scores is not None and records[0].failed is None
    sampling = [(body["temperature"], body["seed"]) for body in loopback.requests]
    assert sampling == [(0, 5), (0.7, 6), (0.7, 7)]
    rest = [{k: v for k, v in body.items() if k not in ("temperature", "seed")}
            for body in loopback.requests]  # fmt: skip
    assert rest[0] == rest[1] == rest[2]
    # Invalid answers cost tokens, too.
    assert records[0].tokens == (120 if bad.status == 500 else 360)


def test_always_invalid_answer_is_recorded_as_failed_and_asked_again_by_the_next_run(
    loopback: Loopback, tmp_path: Path
) -> None:
    path = tmp_path / "answers.jsonl"

    def answer(number: int, body: dict[str, Any]) -> Answer:
        text = body["messages"][-1]["content"]
        return reply("no", finish="length") if "Movie 3 " in text else good(body)

    loopback.answer = answer
    records = ask(loopback, MOVIES[:6], path)
    assert [number for number, record in records.items() if record.failed] == [3]
    assert "cut off" in str(records[3].failed) and records[3].asks == 3
    (line,) = [line for line in path.read_text().splitlines() if '"scores": null' in line]
    assert json.loads(line)["id"] == "3" and "cut off" in json.loads(line)["failed"]
    loopback.answer = lambda number, body: good(body)
    records = ask(loopback, MOVIES[:6], path)
    assert records[3].failed is None and len(loopback.requests) == 5 + 3 + 1


def test_one_movie_that_the_server_refuses_does_not_end_the_run(loopback: Loopback) -> None:
    def answer(number: int, body: dict[str, Any]) -> Answer:
        refused = "Movie 3 " in body["messages"][-1]["content"]
        return Answer(400, body=b'{"error": "too long"}') if refused else good(body)

    loopback.answer = answer
    records = ask(loopback, MOVIES[:8], concurrency=1)
    assert {n: r.failed for n, r in records.items() if r.failed} == {
        3: "the server says: 400, too long"
    }


def test_refusal_of_the_first_requests_ends_the_run(loopback: Loopback) -> None:
    loopback.answer = lambda number, body: Answer(400, body=b'{"error": "no images here"}')
    with pytest.raises(
        ServerError, match=rf"^{loopback.url}: the server says: 400, no images here"
    ):
        ask(loopback, MOVIES, concurrency=2)
    assert len(loopback.requests) <= 4


def test_many_movies_without_an_answer_end_the_run(loopback: Loopback, tmp_path: Path) -> None:
    loopback.answer = lambda number, body: good(body) if number < 4 else reply("No.")
    with pytest.raises(UserError, match=r"5 movies in a row .*not JSON: 'No.'.*give_up"):
        ask(loopback, MOVIES, tmp_path / "a.jsonl", concurrency=1, give_up_after=5)
    assert len(loopback.requests) == 4 + 5 * 3
    records = ask(loopback, MOVIES, concurrency=4, give_up_after=None, ask_again=0)
    assert sum(record.failed is not None for record in records.values()) == 30


def test_lost_server_ends_the_run_and_keeps_answers(
    loopback: Loopback, tmp_path: Path, short_backoff: None
) -> None:
    path = tmp_path / "answers.jsonl"
    loopback.answer = lambda number, body: good(body) if number < 10 else Answer(drop=True)
    records: dict[int, Record] = {}
    with pytest.raises(UserError, match=r"in a row"):
        ask(loopback, MOVIES, path, found=records, concurrency=2, retries=1, give_up_after=3)
    answered = [number for number, record in records.items() if record.failed is None]
    assert len(answered) == 10
    loopback.answer = lambda number, body: good(body)
    before = len(loopback.requests)
    ask(loopback, MOVIES, path)
    assert len(loopback.requests) - before == 20


def test_spent_budget_ends_the_run_and_keeps_answers(loopback: Loopback, tmp_path: Path) -> None:
    loopback.answer = lambda number, body: good(body, after=0.05)
    records: dict[int, Record] = {}
    with pytest.raises(BudgetError, match=r"server.max_requests=7 is used up"):
        ask(
            loopback,
            MOVIES,
            tmp_path / "a.jsonl",
            found=records,
            rate_limit=RateLimit(max_requests=7),
        )
    assert len(loopback.requests) == len(records) == 7
    assert all(record.failed is None for record in records.values())


def test_full_disk_ends_the_run(
    loopback: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_disk_full(self: AnswerFile, records: Any) -> None:
        raise UserError("answers.jsonl can't be written (No space left on device)")

    monkeypatch.setattr(AnswerFile, "add", raise_disk_full)
    records: dict[int, Record] = {}
    with pytest.raises(UserError, match=r"No space left"):
        ask(loopback, MOVIES, tmp_path / "a.jsonl", found=records)
    assert not records


def test_record_is_reported_only_once_it_is_on_disk(
    loopback: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "answers.jsonl"
    not_on_disk: list[int] = []

    class Found(dict[int, Record]):
        def __setitem__(self, number: int, record: Record) -> None:
            lines = [json.loads(line)["id"] for line in path.read_text().splitlines()]
            if record.id not in lines:
                not_on_disk.append(number)
            super().__setitem__(number, record)

    records = Found()
    ask(loopback, MOVIES, path, found=records)
    assert len(records) == 30 and not_on_disk == []


def test_concurrency_limits_the_answers_that_a_kill_can_lose(
    loopback: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, fsync = tmp_path / "answers.jsonl", os.fsync

    def slow_fsync(file: int) -> None:
        time.sleep(0.1)
        fsync(file)

    monkeypatch.setattr(os, "fsync", slow_fsync)
    unwritten = []

    def answer(number: int, body: dict[str, Any]) -> Answer:
        written = path.read_text().count("\n") if path.exists() else 0
        unwritten.append(number + 1 - written)
        return good(body)

    loopback.answer = answer
    ask(loopback, MOVIES[:12], path, concurrency=3)
    assert len(unwritten) == 12 and max(unwritten) <= 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_waits_for_pending_answers(
    number: int, loopback: Loopback, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = signal.getsignal(number)
    loopback.answer = lambda _, body: good(body, after=0.4)

    def stop() -> None:
        while len(loopback.requests) < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop).start()
    records: dict[int, Record] = {}
    with pytest.raises(Interrupted) as caught:
        ask(loopback, MOVIES, tmp_path / "a.jsonl", found=records, concurrency=3)
    assert caught.value.code == 128 + number
    assert len(records) == len(loopback.requests) == 3
    assert "waiting for 3 pending answers" in capsys.readouterr().out
    assert signal.getsignal(number) is handler


def test_a_second_signal_does_not_wait(loopback: Loopback, tmp_path: Path) -> None:
    loopback.answer = lambda _, body: good(body, after=3.0)

    def stop() -> None:
        while not loopback.requests:
            time.sleep(0.01)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    threading.Thread(target=stop).start()
    started = time.monotonic()
    with pytest.raises(Interrupted):
        ask(loopback, MOVIES, tmp_path / "a.jsonl", concurrency=2)
    assert time.monotonic() - started < 2.5


# answers=logprobs.


def test_logprobs_give_the_share_of_yes(loopback: Loopback) -> None:
    chance = {"Action": 0.9, "Comedy": 0.2, "Drama": 0.0, "Horror": 0.5}

    def answer(number: int, body: dict[str, Any]) -> Answer:
        (genre,) = (g for g in GENRES if f"the genre {g}?" in body["messages"][-1]["content"])
        yes = chance[genre] * 0.8
        tokens = {"Yes": math.log(yes) if yes else -100.0, "No": math.log(0.8 - yes)}
        return reply("Yes", finish="length", tokens=tokens)

    loopback.answer = answer
    records = ask(loopback, MOVIES[:3], answers="logprobs", show=["title"])
    for record in records.values():
        assert record.scores == pytest.approx(chance, abs=1e-9)
        assert (record.asks, record.tokens, record.why) == (4, 480, "")


def test_missing_logprobs_end_the_run_at_once(loopback: Loopback) -> None:
    loopback.answer = lambda number, body: reply("Yes")
    with pytest.raises(ServerError, match=r"no token probabilities.*answers=json"):
        ask(loopback, MOVIES, answers="logprobs", show=["title"], concurrency=1)
    assert len(loopback.requests) == 1


# With llama.cpp's own server.


def test_llama_follows_the_schema_and_sees_the_poster(llama: str, tmp_path: Path) -> None:
    movies = [make_movie(0, draw_poster(tmp_path / f"{n}.png", seed=n)) for n in range(3)]
    movies.append(make_movie(0))
    records = ask(
        llama,
        movies,
        tmp_path / "a.jsonl",
        show=["title", "poster"],
        why_max_length=20,
        parameters={"temperature": 0, "max_tokens": 2000, "seed": 1},
        model="tiny-llava",
    )
    answers = [records[n].scores for n in range(4)]
    assert all(scores is not None and list(scores) == list(GENRES) for scores in answers)
    assert all(records[n].tokens and len(records[n].why) <= 20 for n in range(4))
    # All titles are equal, so only the posters can make the answers differ.
    assert len({json.dumps([records[n].scores, records[n].why]) for n in range(4)}) > 1
    assert ask(llama, movies[:1], show=["title", "poster"], why_max_length=20,
               parameters={"temperature": 0, "max_tokens": 2000, "seed": 1},
               model="tiny-llava")[0].scores == answers[0]  # fmt: skip


def test_llama_gives_probabilities(llama: str) -> None:
    records = ask(llama, MOVIES[:1], answers="logprobs", show=["title"], model="tiny-llava",
                top_logprobs=300)  # fmt: skip
    assert records[0].failed is None and records[0].scores is not None
    assert all(0 < share < 1 for share in records[0].scores.values())
    assert len(set(records[0].scores.values())) > 1


def test_text_only_llama_ends_the_run(start_llama: Callable[..., str], tmp_path: Path) -> None:
    movies = [make_movie(n, draw_poster(tmp_path / f"{n}.png", seed=n)) for n in range(5)]
    with pytest.raises(ServerError, match=r"image input is not supported"):
        ask(start_llama("--text-only"), movies, concurrency=1)


def test_memory_does_not_grow_with_the_number_of_movies(
    loopback: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poster = draw_poster(tmp_path / "a.png", size=(300, 450))
    created: list[int] = []

    def movies() -> Iterator[Movie]:
        for number in range(120):
            created.append(number)
            yield make_movie(number, poster)

    max_alive = 0
    bodies = Questioner.bodies

    def counted(self: Questioner, *arguments: Any) -> Any:
        nonlocal max_alive
        max_alive = max(max_alive, len(created) - len(loopback.requests))
        return bodies(self, *arguments)

    monkeypatch.setattr(Questioner, "bodies", counted)
    loopback.answer = lambda number, body: good(body, after=0.005)
    records = ask(loopback, movies(), tmp_path / "a.jsonl", concurrency=4)  # type: ignore[arg-type]
    assert len(records) == 120
    # Only movies that are being encoded, waiting or in progress are held, not all 120.
    assert max_alive <= 4 + 4 + 4 + 1


def test_numbers_out_of_range_are_refused(loopback: Loopback) -> None:
    server = ChatServer(loopback.url)
    for options in ({"ask_again": -1}, {"again_temperature": 3}):
        with pytest.raises(UserError, match=next(iter(options))):
            Asker(make_questioner(), server, **options)  # type: ignore[arg-type]
