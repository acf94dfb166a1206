"""genre-ask writes a run folder like train.py, survives kills, and never writes the API key."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genre_lightning.comparison.leaderboard import compare, ranked_table
from genre_lightning.genre_ask import expand_override
from genre_lightning.predicting.command import main as predict
from tests.ask.conftest import start_llama  # noqa: F401 - a fixture
from tests.ask.loopback import Answer, Loopback, good, reply, serving
from tests.forking import Command

KEY = "sk-test-0123456789abcdef"
SMALL = ("data.num_movies=60", "data.poster_height=48", "data.workers=1")


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    with serving(Loopback()) as server:
        yield server


def start(folder: Path, url: str, *overrides: str, **environment: str) -> Command:
    """Starts genre-ask in a folder; "-m" must be the first override."""
    flags = [override for override in overrides if override == "-m"]
    others = ["model=tiny", f"base_url={url}", *SMALL, *overrides[len(flags) :]]
    arguments = ["-m", "genre_lightning.genre_ask", *flags, *others]
    return Command(arguments, folder, {**os.environ, **environment})


def finish(process: Command, code: int = 0) -> str:
    """Waits for the command to exit with this code; returns its output, stderr last."""
    out, errors = process.communicate(timeout=120)
    assert process.returncode == code, out + errors
    return out + errors


def run_folder(folder: Path) -> Path:
    (found,) = (folder / "runs" / "asks").iterdir()
    return found


def result_of(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "result.json").read_text("utf-8"))
    return result


def test_model_override_is_short_for_model_name() -> None:
    assert expand_override("model=a,b") == "model.name=a,b"
    assert [expand_override(one) for one in ("model.name=a", "+model=x", "data=demo")] == [
        "model.name=a", "+model=x", "data=demo",
    ]  # fmt: skip


@pytest.mark.slow
def test_end_to_end(
    loopback: Loopback,
    tmp_path: Path,
    train_here: Callable[[Path, list[str]], dict[str, Any]],
    tiny_overrides: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Answers are scored, compared and used as a branch; new movies are asked about."""

    def answer(number: int, body: dict[str, Any]) -> Answer:
        return reply("no JSON") if "Silence" in json.dumps(body["messages"][-1]) else good(body)

    loopback.answer = answer
    out = finish(
        start(
            tmp_path,
            loopback.url,
            "train_limit=null",
            "api_key_env=THE_KEY",
            "logger=wandb",
            THE_KEY=KEY,
        )
    )
    run = run_folder(tmp_path)
    assert all(each.get("Authorization") == f"Bearer {KEY}" for each in loopback.headers)
    for path in [*run.rglob("*"), *(tmp_path / "runs").rglob("*")]:
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    assert KEY not in out

    # The files are those that train.py and evaluate.py write.
    result = result_of(run)
    assert result["status"] == "completed" and result["wandb_run_id"]
    assert result["monitor_value"] == result["val"]["map_macro"]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics == pytest.approx(result["test"])
    lines = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    failed = {line["id"] for line in lines if line["scores"] is None}
    assert failed and result["unanswered"] and sum(result["unanswered"].values()) == len(failed)
    answered = [line for line in lines if line["scores"] is not None]
    assert len(lines) == 60
    assert result["tokens_per_movie"] == pytest.approx(
        sum(line["asks"] for line in lines) * 120 / 60
    )
    assert result["seconds_per_movie"] == pytest.approx(sum(line["seconds"] for line in lines) / 60)
    with (run / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and set(rows[0]) >= {"id", "title", "has_poster", "Western"}
    for row in rows:
        if row["id"] in failed:
            assert row["predicted"] == "" and float(row["Drama"]) == 0
    with (run / "per_genre.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 8
    page = (run / "report.html").read_text("utf-8")
    answer_reasons = [line["why"] for line in answered if line["why"] in page]
    assert answer_reasons and ">why</bdi></b>" in page and "tokens" in page
    with np.load(run / "answers.npz") as file:
        assert set(file["ids"]) == {line["id"] for line in answered}
        by_id = dict(zip(file["ids"].tolist(), file["x"].tolist(), strict=True))
    for line in answered:
        assert by_id[line["id"]] == pytest.approx(list(line["scores"].values()))

    # The answers as a branch.
    overrides = [*tiny_overrides(model="title")[1:], "++data.num_movies=60"]
    trained = tmp_path / "runs" / "trained"
    train_here(
        trained,
        ["model/branch=[title_tfidf,answers]", f"model.branches.answers.path='{run}/answers.npz'",
         *overrides],
    )  # fmt: skip

    # The run in a leaderboard.
    heads, table = ranked_table(compare([run]))
    shown = dict(zip(heads, table[0], strict=True))
    assert shown["tokens a movie"] == f"{result['tokens_per_movie']:.0f}"
    assert float(shown["seconds a movie"]) == pytest.approx(result["seconds_per_movie"], rel=0.01)

    # A prediction for a new movie, without and with an answer.
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    best = str(trained / "checkpoints" / "best.ckpt")
    before = len(loopback.requests)
    arguments = [best, "--title", "Lost Kiss (1968)", "--json"]
    assert predict(arguments) == 0
    plain = json.loads(capsys.readouterr().out)
    assert len(loopback.requests) == before
    monkeypatch.setenv("THE_KEY", KEY)
    for _ in range(2):
        # In another thread: the browser of other tests leaves an event loop running in this one.
        with ThreadPoolExecutor(1) as pool:
            ask_arguments = [*arguments, "--ask", str(run), "--api-key-env", "THE_KEY"]
            assert pool.submit(predict, ask_arguments).result() == 0
        asked = json.loads(capsys.readouterr().out)
    assert len(loopback.requests) == before + 1
    assert asked["scores"] != plain["scores"] and asked["why"].startswith("by ")
    assert "Title: Lost Kiss (1968)" in loopback.shown()[-1]


@pytest.mark.slow
def test_rerun_after_a_kill_asks_only_about_the_remaining_movies(
    loopback: Loopback, tmp_path: Path
) -> None:
    loopback.answer = lambda number, body: good(body, after=0.25)
    settings = ("server.concurrency=3", "show=[title]")
    killed = start(tmp_path, loopback.url, *settings)
    deadline = time.monotonic() + 60
    while len(loopback.requests) < 10:
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    run = run_folder(tmp_path)
    assert result_of(run)["status"] == "interrupted"
    kept = (run / "answers.jsonl").read_text().count("\n")
    loopback.answer = lambda number, body: good(body)
    assert "data.batch_size" not in finish(start(tmp_path, loopback.url, *settings))
    counts = Counter(loopback.shown())
    assert len(counts) == 12 + 7  # test and val
    repeated = {text: count for text, count in counts.items() if count > 1}
    assert len(repeated) <= 3 and all(count == 2 for count in repeated.values())
    assert kept >= 7
    result = result_of(run)
    assert (result["status"], result["attempts"]) == ("completed", 2)
    # A third run has nothing left to ask about.
    before, metrics = len(loopback.requests), result["test"]
    finish(start(tmp_path, loopback.url, *settings))
    assert len(loopback.requests) == before and result_of(run)["test"] == metrics


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_says_how_to_continue(loopback: Loopback, tmp_path: Path) -> None:
    loopback.answer = lambda number, body: good(body, after=0.3)
    process = start(tmp_path, loopback.url, "server.concurrency=2")
    while len(loopback.requests) < 4:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out = finish(process, 130)
    run = run_folder(tmp_path)
    answered = (run / "answers.jsonl").read_text().count("\n")
    assert answered == len(loopback.requests)
    assert f"Stopped. {answered} of 19 movies have an answer" in " ".join(out.split())
    assert "run the same command again to continue" in out and "Traceback" not in out
    assert result_of(run)["status"] == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "status", "message"),
    [
        (["show=[synopsis]"], 200, "show: no movie of the dataset has a column 'synopsis'"),
        ([], 401, "it may need a key.*401, no key given"),
    ],
    ids=["column", "refused"],
)
def test_errors_are_one_sentence(
    overrides: list[str], status: int, message: str, loopback: Loopback, tmp_path: Path
) -> None:
    loopback.answer = lambda number, body: Answer(status, body=b'{"error": "no key given"}')
    out = finish(start(tmp_path, loopback.url, *overrides), 1)
    last = out.strip().splitlines()[-1]
    assert re.match(f"error: .*{message}", last) and "Traceback" not in out
    assert result_of(run_folder(tmp_path))["status"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=tiny"], "base_url must be given: genre-ask model=NAME"),
        (["-m", "model=tiny,other"], "base_url must be given: genre-ask model=NAME"),
        (["-m", "base_url=http://h/v1,http://i/v1"], "model must be given: genre-ask model=NAME"),
        (["model=tiny", "base_url=ftp://h"], "base_url=ftp://h is not the address of"),
        (["model=tiny", "base_url=http://h/v1", "split=train"], "split=train must be val or test"),
        (
            ["model=tiny", "base_url=http://h/v1", "monitor=val/f1"],
            "monitor=val/f1 is not a validation metric",
        ),
        (["model=tiny", "base_url=http://h/v1", "data=manifest"], "data.path has to be given"),
        (["model=tiny", "base_url=http://h/v1", "limit=0"], "limit=0 must be a whole number"),
        (
            ["model=tiny", "base_url=http://h/v1", "server.retries=null"],
            "server.retries can't be null",
        ),
    ],
    ids=["no server", "sweep", "no model", "address", "split", "monitor", "data", "limit", "null"],
)
def test_invalid_settings_leave_no_folder(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    out = finish(
        Command(["-m", "genre_lightning.genre_ask", *overrides], tmp_path, {**os.environ}), 1
    )
    assert out.startswith(f"error: {message}") and "Traceback" not in out
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_api_key_given_as_api_key_env_is_not_written(tmp_path: Path) -> None:
    for value in (KEY, "gsk_0123456789", "NO_SUCH_KEY"):
        out = finish(start(tmp_path, "http://127.0.0.1:1/v1", f"api_key_env={value}"), 1)
        assert out.startswith("error: api_key_env") and not any(tmp_path.iterdir())
        assert (value in out) is value.isupper()


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [[], ["-m"]], ids=["run", "sweep"])
def test_unwritable_run_folder_is_reported(sweep: list[str], tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    out = finish(start(tmp_path, "http://127.0.0.1:1/v1", *sweep), 1)
    assert re.match("error: the run can't be written to runs/.* is not a folder: name another", out)


def test_runs_as_a_python_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "genre_lightning.genre_ask", f"api_key_env={KEY}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: api_key_env"), done.stderr


@pytest.mark.slow
def test_sweep_over_shown_columns_gives_a_row_per_job(loopback: Loopback, tmp_path: Path) -> None:
    loopback.answer = lambda number, body: good(body)
    command = ("-m", "show=[poster],[title,poster]", "sweep.name=leak")
    out = finish(start(tmp_path, loopback.url, *command))
    sweep = tmp_path / "runs" / "sweeps" / "leak"
    jobs = {each.name for each in sweep.iterdir() if each.is_dir()}
    assert len(jobs) == 2 and (sweep / "leaderboard.html").is_file() and "2 completed" in out
    with (sweep / "leaderboard.csv").open(newline="") as file:
        rows = {row["show"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"[poster]", "[title, poster]"}
    assert all(float(row["tokens_per_movie"]) > 0 for row in rows.values())
    before = len(loopback.requests)
    assert "2 already finished" in finish(start(tmp_path, loopback.url, *command))
    assert len(loopback.requests) == before


@pytest.mark.slow
def test_asks_a_llama_cpp_server(start_llama: Callable[..., str], tmp_path: Path) -> None:  # noqa: F811
    """llama.cpp's server, with a random model, which makes up scores and reasons."""
    overrides = ("limit=4", "why_max_length=20", "parameters.max_tokens=2000", "data.root=.")
    out = finish(start(tmp_path, start_llama(), *overrides))
    run = run_folder(tmp_path)
    lines = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    assert len({json.dumps(line["scores"]) for line in lines if line["scores"]}) > 1
    assert result_of(run)["test"]["num_movies"] == 4 and "Written: " in out
