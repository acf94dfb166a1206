"""Progress lines in the log of a job, for work that takes minutes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from genre_lightning import progress
from genre_lightning.inputs.embedding_cache import open_embeddings
from genre_lightning.inputs.input import Store
from genre_lightning.inputs.poster_cache import open_poster_cache
from genre_lightning.predicting.tables import predicting_progress
from genre_lightning.progress import ProgressLines
from tests.inputs.fake_encoder import WIDTH, FakeItems
from tests.pictures import locate


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_lines_are_rare_and_estimate_the_remaining_time() -> None:
    printed: list[str] = []
    clock = Clock()
    lines = ProgressLines("decoding posters", 4000, printed.append, clock)
    for second in range(1, 95):
        clock.now += 1
        lines.update(10 * second, ", 2 broken")
    assert printed == [
        "decoding posters: 300 of 4,000, 2 broken, about 370 s left",
        "decoding posters: 600 of 4,000, 2 broken, about 340 s left",
        "decoding posters: 900 of 4,000, 2 broken, about 310 s left",
    ]


def test_long_job_has_fewer_lines() -> None:
    printed: list[str] = []
    clock = Clock()
    lines = ProgressLines("embedding", 360_000, printed.append, clock)
    for second in range(1, 36_001):
        clock.now += 1
        lines.update(10 * second)
    assert 50 < len(printed) < 120


def test_remaining_time_follows_the_speed_since_the_last_line() -> None:
    printed: list[str] = []
    clock = Clock()
    lines = ProgressLines("embedding", 1000, printed.append, clock)
    for done in (100, 900, 900, 910, 910.6):  # the first update comes once an encoder is loaded
        clock.now += 31
        lines.update(done)
    assert printed == [
        "embedding: 900 of 1,000, about 4 s left",
        "embedding: 900 of 1,000",
        "embedding: 910 of 1,000, about 279 s left",
        "embedding: 910 of 1,000, about 77 min left",
    ]


@pytest.fixture
def line_at_each_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "MIN_SECONDS", 0)
    monkeypatch.setattr(progress, "MIN_SHARE", 0)


@pytest.mark.usefixtures("line_at_each_update")
@pytest.mark.parametrize("shown", [True, False])
def test_caches_print_progress_without_a_terminal(
    shown: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "cache", workers=1, progress=shown)
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    posters = [locate(tmp_path / f"{number}.png") for number in range(3)]
    open_poster_cache(posters, size=(8, 8), store=store)
    open_embeddings(FakeItems([b"a", b"b"]).source(), "key", (1, WIDTH), "embedding title", store)
    output = capsys.readouterr().err.splitlines()
    if not shown:
        assert output == []
        return
    for line in ("decoding posters: 2 of 3, about", "decoding posters: 3 of 3, about 0 s left"):
        assert sum(printed.startswith(line) for printed in output) == 1
    assert any(line.startswith("embedding title: 2 of 2, about") for line in output)
    # No progress is shown for a cache that is already complete.
    open_poster_cache(posters, size=(8, 8), store=store)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("line_at_each_update")
def test_predicting_reports_how_much_of_the_file_was_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "movies.csv"
    path.write_text("title\nHeat\nJaws\nRaid\n")
    with path.open("rb") as file, predicting_progress(file, path) as update:
        next(file)
        for _ in file:
            update()
    output = capsys.readouterr().err.splitlines()
    assert [line.partition(", about")[0] for line in output] == [
        "predicting: 16 of 21 bytes, 2 movies",
        "predicting: 21 of 21 bytes, 3 movies",
    ]


@pytest.mark.usefixtures("line_at_each_update")
def test_predicting_from_a_pipe_shows_no_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal, which would show a bar
    read, write = os.pipe()
    os.close(write)
    with open(read, "rb") as file, predicting_progress(file, Path(f"/dev/fd/{read}")) as update:
        update()
    assert capsys.readouterr().err == ""
