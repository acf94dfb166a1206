"""genre-predict --ask: a language model is asked about new movies."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from genre_lightning import GenrePredictor
from genre_lightning.ask.run import save_questioner
from genre_lightning.inputs.vectors import VectorsInput
from genre_lightning.predicting.command import main
from tests.ask.asked_movies import make_questioner
from tests.ask.loopback import GENRES, Answer, Loopback, good, reply, scores_of, serving

HEAD = {"name": "embedding_head", "hidden": 0, "norm": "none", "input_dropout": 0.0}


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    with serving(Loopback()) as server:
        yield server


@pytest.fixture
def run(loopback: Loopback, tmp_path: Path) -> Path:
    """The files of a genre-ask run that --ask needs."""
    folder = tmp_path / "run"
    folder.mkdir()
    settings = make_questioner(base_url=loopback.url, show=["title"])
    save_questioner(folder, settings, ask_again=0, again_temperature=0.5)
    return folder


@pytest.fixture
def checkpoint(run: Path, make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(poster=None, more={"answers": (answers_input(run), HEAD)})


def answers_input(run: Path, width: int = 4) -> VectorsInput:
    branch_input = VectorsInput(str(run / "answers.npz"), log_odds=True)
    branch_input.width = width
    return branch_input


def answered_vector(body: dict[str, Any]) -> list[float]:
    scores = scores_of(body)
    return [scores[genre] / 100 for genre in GENRES]


def test_csv_rows_are_asked_about_and_missing_answers_reported(
    run: Path, checkpoint: Path, loopback: Loopback, capsys: pytest.CaptureFixture[str]
) -> None:
    titles = [f"Heat {number} (1995)" for number in range(9)]
    table = run.parent / "movies.csv"
    table.write_text("\n".join(["title", *titles, ""]))

    def answer(number: int, body: dict[str, Any]) -> Answer:
        return reply("No.") if "Heat 4 " in json.dumps(body) else good(body)

    loopback.answer = answer
    assert main([str(checkpoint), "--csv", str(table), "--out", "-", "--ask", str(run)]) == 0
    out = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(out.out)))
    by_title = dict(zip(loopback.shown(), loopback.requests, strict=True))
    predictor = GenrePredictor.from_checkpoint(checkpoint, device="cpu")
    assert [row["title"] for row in rows] == titles
    for title, row in zip(titles, rows, strict=True):
        if "Heat 4 " in title:
            assert "no answer: its answer is invalid: not JSON: 'No.'" in row["problem"]
            (expected,) = predictor.predict([title])
        else:
            body = next(body for text, body in by_title.items() if title in text)
            (expected,) = predictor.predict([title], id=[answered_vector(body)])
            assert row["problem"] == ""
        for genre in GENRES:
            assert float(row[genre]) == pytest.approx(expected.scores[genre], abs=2e-6)
    assert f"asking m at {loopback.url}" in out.err
    # Answers are kept in the run folder, so only the failed request is repeated.
    before = len(loopback.requests)
    assert main([str(checkpoint), "--csv", str(table), "--out", "-", "--ask", str(run)]) == 0
    assert len(loopback.requests) == before + 1


def test_an_explanation_has_the_answers_part_and_reason(
    run: Path, checkpoint: Path, loopback: Loopback, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(checkpoint), "--title", "Heat (1995)", "--ask", str(run), "--explain"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert f"m: {scores_of(loopback.requests[0])['why']}" in out and ", answers " in out


def test_the_api_key_is_read_from_the_named_variable(
    run: Path, checkpoint: Path, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "abc")
    heat = [str(checkpoint), "--title", "Heat (1995)", "--ask", str(run)]
    assert main(heat) == 0 and "Authorization" not in loopback.headers[-1]
    alien = [str(checkpoint), "--title", "Alien (1979)", "--ask", str(run)]
    assert main([*alien, "--api-key-env", "A_KEY"]) == 0
    assert loopback.headers[-1]["Authorization"] == "Bearer abc"


def test_ask_url_replaces_the_address(run: Path, checkpoint: Path, loopback: Loopback) -> None:
    with serving(Loopback()) as other:
        arguments = [str(checkpoint), "--title", "Heat (1995)", "--ask", str(run)]
        assert main([*arguments, "--ask-url", other.url]) == 0
        assert len(other.requests) == 1 and not loopback.requests


def test_a_wrong_address_or_key_is_reported_with_its_option(
    run: Path, checkpoint: Path, loopback: Loopback, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(checkpoint), "--title", "Heat (1995)", "--ask", str(run)]
    closed = loopback.url.replace("127.0.0.1", "127.0.0.2")
    for option, value, reason in (
        ("--ask-url", "ftp://x", "error: --ask-url=ftp://x is not the address of"),
        ("--ask-url", closed, "is the server running, and is --ask-url its address?"),
        (
            "--api-key-env",
            "NOT_SET",
            "error: --api-key-env=NOT_SET: this environment variable is not",
        ),
        ("--api-key-env", "sk-secret", "error: --api-key-env must name an environment variable"),
    ):
        assert main([*arguments, option, value]) == 1
        errors = capsys.readouterr().err
        assert reason in errors and "secret" not in errors


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no branch", "--ask is for a model with one branch of answers; this one has none"),
        ("genres", "answers are about 4 genres, and the branch answers was trained on 3 numbers"),
        ("no run", "has no asked.json, so it is not a run of genre-ask"),
        ("damaged", "asked.json: can't be used"),
    ],
)
def test_unusable_models_and_runs_are_refused(
    case: str,
    message: str,
    run: Path,
    checkpoint: Path,
    make_checkpoint: Callable[..., Path],
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, folder = checkpoint, run
    if case == "no branch":
        model = tiny_checkpoint
    elif case == "genres":
        model = make_checkpoint(poster=None, more={"answers": (answers_input(run, 3), HEAD)})
    elif case == "no run":
        folder = run.parent
    else:
        (run / "asked.json").write_text('{"questioner": {"model": 3}}')
    assert main([str(model), "--title", "Heat (1995)", "--ask", str(folder)]) == 1
    assert message in capsys.readouterr().err


def test_server_options_need_ask(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--ask-url", "--api-key-env"):
        with pytest.raises(SystemExit):
            main(["best.ckpt", "--title", "Heat", option, "X"])
        assert "need --ask" in capsys.readouterr().err
