"""Asking about the movies of a dataset: progress bar, unanswered movies, continuing a run."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from genre_lightning.ask.answer_file import ANSWER_FILE_NAME, AnswerFile
from genre_lightning.ask.rate_limit import BudgetError
from genre_lightning.ask.run import (
    QUESTIONS_FILE,
    Answers,
    ServerSettings,
    answer_reasons,
    ask_rows,
    check_shown,
    load_questioner,
    open_answer_file,
    save_questioner,
    unanswered_line,
)
from genre_lightning.ask.server import ServerError
from genre_lightning.errors import UserError
from genre_lightning.movies.movie import MovieSet
from tests.ask.asked_movies import make_movie, make_questioner
from tests.ask.loopback import GENRES, Answer, Loopback, good, reply, scores_of

MOVIES = MovieSet([make_movie(number) for number in range(12)], GENRES)
ROWS = np.arange(2, 12, 2)


def ask_movies(
    loopback: Loopback, folder: Path, terminal: bool = True, **settings: Any
) -> tuple[Answers, str, AnswerFile]:
    """Ask, and return the answers, the terminal's output and the answer file."""
    console = Console(
        file=(out := io.StringIO()), force_terminal=terminal, width=120, highlight=False
    )
    with open_answer_file(folder, None) as answer_file:
        answers = ask_rows(
            MOVIES,
            ROWS,
            make_questioner(base_url=loopback.url, show=["title"]),
            answer_file,
            ServerSettings(**settings),
            console,
            ask_again=0,
        )
        return answers, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()), answer_file


def test_progress_bar_has_movies_tokens_and_time_left(loopback: Loopback, tmp_path: Path) -> None:
    loopback.answer = lambda number, body: reply("No.") if number == 2 else good(body)
    answers, output, answer_file = ask_movies(loopback, tmp_path, concurrency=1)
    last = output.replace("\r", "\n").strip().splitlines()[-1]
    assert re.search(r"asking .* 5 of 5 movies, 600 tokens, 1 without answer 0:00:00", last)
    assert answers.tokens_per_movie == 120.0 and answers.asked == 5
    assert np.isnan(answers.scores).any(axis=1).sum() == 12 - 4
    # The scores of a movie are in its row, in the order of the genres.
    for body in loopback.requests:
        row = int(body["messages"][-1]["content"].split()[2])
        if row not in answers.failed:
            expected = scores_of(body)
            np.testing.assert_allclose(
                answers.scores[row], [expected[genre] / 100 for genre in GENRES], rtol=1e-6
            )
            assert answer_reasons(answers, answer_file, np.array([row])) == {row: expected["why"]}
    (failed,) = answers.failed
    line = unanswered_line(MOVIES, "test", ROWS, answers)
    assert line == (
        "test: 1 of 5 movies have no answer and count as wrong: "
        f"{failed} (its answer is invalid: not JSON: 'No.')"
    )
    train_line = unanswered_line(MOVIES, "train", ROWS, answers)
    assert train_line is not None
    assert train_line.startswith("train: 1 of 5 movies have no answer and are not in answers.npz: ")
    assert unanswered_line(MOVIES, "val", np.array([0]), answers) is None


def test_no_progress_bar_outside_a_terminal(loopback: Loopback, tmp_path: Path) -> None:
    _, output, _ = ask_movies(loopback, tmp_path, terminal=False)
    assert "asking" not in output


def test_used_up_budget_says_how_to_continue(loopback: Loopback, tmp_path: Path) -> None:
    hint = r"3 of 5 movies have an answer, in .*answers.jsonl; run the same command again to cont"
    with pytest.raises(BudgetError, match=rf"max_requests=3 is used up\. {hint}"):
        ask_movies(loopback, tmp_path, max_requests=3)
    answers, _, _ = ask_movies(loopback, tmp_path, max_requests=3)
    assert len(answers.keys) == 5 and len(loopback.requests) == 5


def test_run_without_any_answer_is_an_error(loopback: Loopback, tmp_path: Path) -> None:
    loopback.answer = lambda number, body: reply("No.")
    with pytest.raises(ServerError, match=r"no movie has an answer; the first: .*not JSON"):
        ask_movies(loopback, tmp_path)


def test_server_without_token_counts(loopback: Loopback, tmp_path: Path) -> None:
    def answer(number: int, body: dict[str, Any]) -> Answer:
        answer = json.loads(good(body).body)
        del answer["usage"]
        return Answer(body=json.dumps(answer).encode())

    loopback.answer = answer
    answers, _, _ = ask_movies(loopback, tmp_path)
    assert answers.tokens_per_movie is None and answers.seconds_per_movie


def test_answer_files_of_other_runs_are_found(loopback: Loopback, tmp_path: Path) -> None:
    ask_movies(loopback, first := _make_folder(tmp_path / "runs" / "asks" / "a"))
    second = _make_folder(tmp_path / "runs" / "sweeps" / "s" / "b")
    with open_answer_file(second, str(tmp_path / "runs")) as answer_file:
        assert len(answer_file) == 5
    with open_answer_file(second, None) as answer_file:
        assert len(answer_file) == 0
    with open_answer_file(first, str(tmp_path / "runs")) as answer_file:
        assert answer_file.path == first / ANSWER_FILE_NAME and len(answer_file) == 5


def _make_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_saved_questioner_is_loaded(tmp_path: Path) -> None:
    save_questioner(tmp_path, make_questioner(), ask_again=1)
    loaded, more = load_questioner(tmp_path)
    assert loaded.to_plain() == make_questioner().to_plain() and more == {"ask_again": 1}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda plain: plain.update(concurrency=3), "unknown key 'concurrency'"),
        (lambda plain: plain["questioner"].update(genres=[1, 2]), "genres is not a list of texts"),
        (lambda plain: plain["questioner"].update(show=[["title"]]), "show is not a list of texts"),
    ],
    ids=["unknown key", "genres", "show"],
)
def test_a_damaged_saved_questioner_is_refused(tmp_path: Path, damage, message: str) -> None:
    save_questioner(tmp_path, make_questioner(), ask_again=1)
    path = tmp_path / QUESTIONS_FILE
    plain = json.loads(path.read_text())
    damage(plain)
    path.write_text(json.dumps(plain))
    with pytest.raises(UserError, match=f"asked.json: can't be used: {message}"):
        load_questioner(tmp_path)


def test_unknown_columns_are_refused() -> None:
    check_shown(MOVIES, ["title"])
    with pytest.raises(UserError, match=r"show: no movie of the dataset has a column 'poster'"):
        check_shown(MOVIES, ["title", "poster"])
    with pytest.raises(UserError, match=r"show=title must be a list of columns: show=\[title\]"):
        check_shown(MOVIES, "title")
