"""Which checkpoint and which folder a run begins with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from genre_lightning.errors import UserError
from genre_lightning.runs.places import (
    best_checkpoint,
    find_checkpoint,
    run_directory,
    starting_point,
)
from genre_lightning.runs.result import write_result


def saved(folder: Path, age: int) -> Path:
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    path.write_text("")
    os.utime(path, (10**9 - age, 10**9 - age))
    return path


def test_what_to_go_on_from(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    older, newer = (saved(Path("runs", name), age) for name, age in (("a/1", 20), ("b/2", 10)))
    own = saved(Path("elsewhere"), 30)
    Path("empty").mkdir()
    for ckpt_path, folder, expected in (
        ("last", "elsewhere", own),
        ("runs", "elsewhere", newer),
        ("runs/a", "elsewhere", older),
        ("runs/a/1", "runs/b/2", older),
        (str(older), "elsewhere", older),
        ("not/there.ckpt", "elsewhere", Path("not/there.ckpt")),  # named by who reads it
    ):
        assert find_checkpoint(ckpt_path, Path(folder)) == expected
    for ckpt_path, folder in (("last", "new"), ("last", "runs"), ("empty", "new")):
        with pytest.raises(UserError, match=f"ckpt_path={ckpt_path}: there is no .*last.ckpt in"):
            find_checkpoint(ckpt_path, Path(folder))


@pytest.mark.parametrize(
    ("ckpt_path", "place"),
    [
        (None, "new"),
        ("last", "runs/b/2"),
        ("runs/a", "runs/a/1"),
        ("elsewhere", "elsewhere"),
        ("runs/a/1/checkpoints/last.ckpt", "new"),
        ("empty", "new"),
        ("not/there", "new"),
    ],
    ids=str,
)
def test_where_it_resumes(
    ckpt_path: str | None, place: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_directory("last", "new") == "new"
    for name, age in (("runs/a/1", 20), ("runs/b/2", 10), ("elsewhere", 30)):
        saved(Path(name), age)
    Path("empty").mkdir()
    assert run_directory(ckpt_path, "new") == place


@pytest.mark.parametrize("status", ["completed", "interrupted", "failed", None])
@pytest.mark.parametrize("last", [True, False], ids=["checkpoint", "none"])
def test_nothing_is_overwritten(
    status: str | None, last: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    if status is not None:
        write_result(tmp_path, {"status": status})
    if last:
        saved(tmp_path, 0)
    assert starting_point("last", tmp_path) == "last"
    if not last and status != "completed":
        assert starting_point(None, tmp_path) is None
        return
    with pytest.raises(UserError, match=rf"{tmp_path} holds a run already.*ckpt_path={tmp_path}"):
        starting_point(None, tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    if status == "completed":
        with pytest.raises(UserError, match="holds a run already"):
            starting_point(None, tmp_path)
    else:
        assert starting_point(None, tmp_path) == "last"


def scored(folder: Path, value: float | None, monitor: str = "val/map_macro", **more: Any) -> Path:
    path = folder / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    path.write_text("")
    result = {"status": "completed", "monitor": monitor, "monitor_value": value, **more}
    write_result(folder, result)
    return path


def test_which_checkpoint_is_scored(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = Path("runs/sweeps/lr")
    scored(sweep / "optimizer.lr=1", 0.2)
    best = scored(sweep / "optimizer.lr=2", 0.3)
    scored(sweep / "optimizer.lr=3", 0.9, status="failed")
    scored(sweep / "optimizer.lr=4", None)
    newest = scored(Path("runs/2026/x"), 0.1)
    os.utime(newest, (2 * 10**9, 2 * 10**9))
    for ckpt_path, expected in (
        (str(best), best),
        (str(best.parent.parent), best),
        (str(sweep), best),
        ("last", newest),
        ("not/there.ckpt", Path("not/there.ckpt")),
    ):
        assert best_checkpoint(ckpt_path) == expected


def test_the_lowest_loss_is_best(tmp_path: Path) -> None:
    low = scored(tmp_path / "a", 0.1, "val/loss")
    scored(tmp_path / "b", 0.2, "val/loss")
    assert best_checkpoint(tmp_path) == low


def test_no_best_checkpoint(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"ckpt_path=last: there is no checkpoints/best\.ckpt"):
        best_checkpoint("last")
    scored(tmp_path / "a", 0.1, status="interrupted")
    with pytest.raises(UserError, match="no run in it has completed"):
        best_checkpoint(tmp_path)
    scored(tmp_path / "b", 0.1)
    scored(tmp_path / "c", 0.1, "val/f1_micro")
    with pytest.raises(UserError, match="val/f1_micro and val/map_macro"):
        best_checkpoint(tmp_path)
