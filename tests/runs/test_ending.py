"""The last lines that a run prints."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from genre_lightning.runs.ending import completed_message, interrupted_message

RESULT = {
    "epochs": 3,
    "seconds": 4.4,
    "monitor": "val/loss",
    "monitor_value": 0.25,
    "best_checkpoint": "checkpoints/best.ckpt",
}


def config_of(*columns: str) -> Any:
    branches = {name: {"input": {"column": name}} for name in columns}
    return OmegaConf.create({"model": {"branches": branches}})


@pytest.fixture(autouse=True)
def as_genre_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs as genre-train, with no commands installed beside the interpreter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/genre-train"])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))


def test_completed_run_suggests_commands(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "day" / "one"
    assert completed_message(folder, RESULT, config_of("title", "poster")).splitlines() == [
        "Run: runs/day/one (3 epochs, 4 s)",
        "Best checkpoint, val/loss 0.2500: runs/day/one/checkpoints/best.ckpt",
        "Next:",
        "  genre-evaluate ckpt_path=runs/day/one/checkpoints/best.ckpt",
        "  genre-predict runs/day/one/checkpoints/best.ckpt --title 'Heat (1995)'",
        "  genre-compare runs",
    ]


def test_no_prediction_is_suggested_for_a_model_of_vectors_alone(tmp_path: Path) -> None:
    lines = completed_message(tmp_path / "one", {**RESULT, "epochs": 1}, config_of()).splitlines()
    assert lines[0] == "Run: one (1 epoch, 4 s)"
    assert [line.split()[0] for line in lines[3:]] == ["genre-evaluate", "genre-compare"]


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        (("poster", "synopsis"), "--poster POSTER.jpg"),
        (("plot", "synopsis"), "--column plot=TEXT"),
    ],
)
def test_prediction_is_of_a_column_of_the_model(columns: tuple[str, ...], options: str) -> None:
    lines = completed_message(Path("/elsewhere/one"), RESULT, config_of(*columns)).splitlines()
    assert lines[4] == f"  genre-predict /elsewhere/one/checkpoints/best.ckpt {options}"
    assert lines[5] == "  genre-compare /elsewhere"


def test_how_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a=1,b"
    assert interrupted_message(folder, []) == "Interrupted before anything was saved in a=1,b"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_text("")
    _, command = interrupted_message(folder, []).splitlines()
    assert command == "  genre-train \"ckpt_path='a=1,b'\""
    code = ["+callbacks.x._target_=mine.X", "+logger.y={_target_: mine.Y}"]
    _, command = interrupted_message(folder, ["seed=1", *code]).splitlines()
    assert shlex.split(command)[1:] == ["ckpt_path='a=1,b'", *code]
    # For train.py, run by an interpreter that is not on the PATH.
    monkeypatch.setattr(sys, "argv", ["clone/train.py"])
    _, command = interrupted_message(folder, []).splitlines()
    assert command == "  ./python clone/train.py \"ckpt_path='a=1,b'\""
