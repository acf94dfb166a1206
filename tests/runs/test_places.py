"""Which checkpoint and which folder a run begins with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from genre_lightning.errors import UserError
from genre_lightning.runs.places import find_checkpoint, run_directory, starting_point
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
