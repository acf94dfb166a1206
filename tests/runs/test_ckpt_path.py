"""Resolution of ckpt_path to a checkpoint and a run folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from genre_lightning.errors import UserError
from genre_lightning.runs.ckpt_path import (
    best_checkpoint,
    last_checkpoint,
    run_directory,
    starting_point,
)
from genre_lightning.runs.result import write_result


def save_last(folder: Path, age: int) -> Path:
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    path.write_text("")
    os.utime(path, (10**9 - age, 10**9 - age))
    return path


def mark_as_sweep_job(folder: Path) -> None:
    (folder.parent / "sweep.json").write_text("{}")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs, a sweep with newer jobs, and folders without a checkpoint."""
    monkeypatch.chdir(tmp_path)
    for name, age in (("runs/a/1", 20), ("runs/b/2", 10), ("elsewhere", 30)):
        save_last(Path(name), age)
    for name, age, value in (("x=1", 2, 0.3), ("x=2", 1, 0.2), ("x=3", 0, None)):
        folder = Path("runs/sweeps/s", name)
        save_last(folder, age)
        status = "interrupted" if value is None else "completed"
        write_result(folder, {"status": status, "monitor": "val/loss", "monitor_value": value})
        mark_as_sweep_job(folder)
    Path("runs/failed").mkdir()
    write_result(Path("runs/failed"), {"status": "failed"})
    Path("empty").mkdir()


@pytest.mark.parametrize(
    ("ckpt_path", "run"),
    [
        ("last", "runs/b/2"),
        ("runs/a", "runs/a/1"),
        ("runs/a/1", "runs/a/1"),
        ("elsewhere", "elsewhere"),
        # The best of a sweep: the lowest loss.
        ("runs/sweeps/s", "runs/sweeps/s/x=2"),
        ("runs/sweeps/s/x=3", "runs/sweeps/s/x=3"),
    ],
)
def test_run_that_is_resumed(ckpt_path: str, run: str, runs: None) -> None:
    assert run_directory(ckpt_path, "new") == run
    assert last_checkpoint(ckpt_path, Path(run)) == Path(run, "checkpoints", "last.ckpt")


@pytest.mark.parametrize(
    "ckpt_path", [None, "runs/a/1/checkpoints/last.ckpt", "not/there.ckpt", "empty", "runs/failed"]
)
def test_other_values_start_a_new_run(ckpt_path: str | None, runs: None) -> None:
    assert run_directory(ckpt_path, "new") == "new"


@pytest.mark.parametrize(
    ("ckpt_path", "message"),
    [
        ("empty", r"there is no checkpoints/last\.ckpt in empty or below"),
        ("runs/failed", r"there is no checkpoints/last\.ckpt in runs/failed or below"),
        ("last", r"there is no checkpoints/last\.ckpt in new, so nothing to resume"),
    ],
)
def test_nothing_to_resume(ckpt_path: str, message: str, runs: None) -> None:
    with pytest.raises(UserError, match=f"ckpt_path={ckpt_path}: {message}"):
        last_checkpoint(ckpt_path, Path("new"))


@pytest.mark.parametrize("ckpt_path", ["", ["elsewhere"]])
def test_empty_value_and_list_are_refused(ckpt_path: Any, runs: None) -> None:
    assert run_directory(ckpt_path, "default") == "default"
    for resolve in (best_checkpoint, lambda value: last_checkpoint(value, Path("default"))):
        with pytest.raises(UserError, match="must be a checkpoint, a run folder, a folder of runs"):
            resolve(ckpt_path)


def test_number_is_the_name_of_a_file(runs: None) -> None:
    assert best_checkpoint(5) == last_checkpoint(5, Path("default")) == Path("5")


def test_file_is_taken_as_named(runs: None) -> None:
    for name in ("runs/a/1/checkpoints/last.ckpt", "not/there.ckpt"):
        assert last_checkpoint(name, Path("new")) == Path(name)


@pytest.mark.parametrize("status", ["completed", "interrupted", "failed", None])
@pytest.mark.parametrize("last", [True, False], ids=["checkpoint", "no checkpoint"])
def test_run_is_not_overwritten(
    status: str | None, last: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    if status is not None:
        write_result(tmp_path, {"status": status})
    if last:
        save_last(tmp_path, 0)
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


def save_best(folder: Path, value: float | None, monitor: str = "val/map_macro", **kw: Any) -> Path:
    path = folder / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    path.write_text("")
    result = {"status": "completed", "monitor": monitor, "monitor_value": value, **kw}
    write_result(folder, result)
    return path


def test_checkpoint_that_is_evaluated(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = Path("runs/sweeps/lr")
    save_best(sweep / "optimizer.lr=1", 0.2)
    best = save_best(sweep / "optimizer.lr=2", 0.3)
    save_best(sweep / "optimizer.lr=3", 0.9, status="failed")
    save_best(sweep / "optimizer.lr=4", None)
    mark_as_sweep_job(sweep / "optimizer.lr=1")
    newest = save_best(Path("runs/2026/x"), 0.1)
    os.utime(newest, (10**9, 10**9))  # older than the jobs, which `last` ignores
    for ckpt_path, expected in (
        (str(best), best),
        (str(best.parent.parent), best),
        (str(sweep), best),
        ("last", newest),
        ("not/there.ckpt", Path("not/there.ckpt")),
    ):
        assert best_checkpoint(ckpt_path) == expected


def test_the_lowest_loss_is_best(tmp_path: Path) -> None:
    low = save_best(tmp_path / "a", 0.1, "val/loss")
    save_best(tmp_path / "b", 0.2, "val/loss")
    assert best_checkpoint(tmp_path) == low


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"learnt_from": "a"}, {"learnt_from": "b"}),
        ({"val": {"num_movies": 24}}, {"val": {"num_movies": 160}}),
    ],
    ids=["other movies", "folds"],
)
def test_runs_on_different_movies_have_no_best(
    one: dict[str, Any], other: dict[str, Any], tmp_path: Path
) -> None:
    save_best(tmp_path / "a", 0.1, **one)
    same = save_best(tmp_path / "b", 0.2, **one)
    assert best_checkpoint(tmp_path) == same
    save_best(tmp_path / "c", 0.3, **other)
    with pytest.raises(UserError, match=f"ckpt_path={tmp_path}: its runs were validated on diff"):
        best_checkpoint(tmp_path)


def test_run_that_does_not_record_its_movies_is_compared(tmp_path: Path) -> None:
    # Runs of earlier versions don't.
    best = save_best(tmp_path / "a", 0.3)
    save_best(tmp_path / "b", 0.2, learnt_from="a", val={"num_movies": 24})
    assert best_checkpoint(tmp_path) == best


def test_no_best_checkpoint(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"ckpt_path=last: no run under .*runs has a checkpoints/best"
    ):
        best_checkpoint("last")
    save_best(tmp_path / "a", 0.1, status="interrupted")
    assert best_checkpoint(tmp_path).is_relative_to(tmp_path / "a")  # the only run
    save_best(tmp_path / "d", 0.1, status="failed")
    with pytest.raises(UserError, match="no run in it has completed"):
        best_checkpoint(tmp_path)
    save_best(tmp_path / "b", 0.1)
    save_best(tmp_path / "c", 0.1, "val/f1_micro")
    with pytest.raises(UserError, match="val/f1_micro and val/map_macro"):
        best_checkpoint(tmp_path)
