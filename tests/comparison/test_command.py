"""genre-compare: where it writes, what it refuses, what it imports."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from genre_lightning.comparison import command
from tests.comparison.written_runs import read_csv


@pytest.mark.parametrize("present", ["empty", "missing", "evaluation"])
def test_no_run_is_an_error_that_says_what_one_is(
    tmp_path: Path, present: str, capsys: pytest.CaptureFixture[str]
):
    if present == "evaluation":
        (tmp_path / ".hydra").mkdir()
        (tmp_path / ".hydra" / "config.yaml").write_text("split: test\n")
        (tmp_path / ".hydra" / "overrides.yaml").write_text("[]\n")
    folder = tmp_path / "none" if present == "missing" else tmp_path
    assert command.main([str(folder)]) == 1
    assert ("is no folder" if present == "missing" else "no run in") in capsys.readouterr().err


def test_the_command_writes_into_a_sweep_and_never_into_a_run(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tree = tmp_path / "sweep"
    shutil.copytree(sweep, tree)
    run = next(folder for folder in tree.iterdir() if folder.is_dir())
    assert command.main([str(run)]) == 0 and not list(tmp_path.rglob("leaderboard.*"))
    assert "Nothing written" in capsys.readouterr().out
    assert command.main([str(tree)]) == 0
    assert {path.name for path in tree.glob("leaderboard.*")} == {
        "leaderboard.csv", "leaderboard.md", "leaderboard.html",
    }  # fmt: skip
    assert not list(run.glob("leaderboard.*"))
    assert command.main([str(run), str(tree), "--out", str(tmp_path / "out")]) == 0
    assert read_csv(tmp_path / "out") == read_csv(tree)


def test_where_it_may_not_write_it_says_what_to_do(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def refuses(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(command, "write_leaderboard", refuses)
    assert command.main([str(sweep)]) == 1
    told = f"error: {sweep} can't be written (Permission denied): name another folder by --out"
    assert told in capsys.readouterr().err


def test_it_needs_neither_torch_nor_lightning(sweep: Path, tmp_path: Path, repository: Path):
    code = (
        "import sys; from genre_lightning.comparison.command import main;"
        f"assert main([{str(sweep)!r}, '--out', {str(tmp_path)!r}]) == 0;"
        "heavy = {'torch', 'pytorch_lightning', 'numpy', 'hydra', 'omegaconf', 'sklearn', 'PIL'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repository, capture_output=True)
