"""genre-compare: where it writes, what it refuses, what it imports."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from genre_lightning.comparison import command
from tests.comparison.written_runs import read_csv


@pytest.mark.parametrize("present", ["empty", "missing", "evaluation"])
def test_a_folder_without_runs_is_refused(
    tmp_path: Path, present: str, capsys: pytest.CaptureFixture[str]
):
    if present == "evaluation":
        (tmp_path / ".hydra").mkdir()
        (tmp_path / ".hydra" / "config.yaml").write_text("split: test\n")
        (tmp_path / ".hydra" / "overrides.yaml").write_text("[]\n")
    folder = tmp_path / "none" if present == "missing" else tmp_path
    assert command.main([str(folder)]) == 1
    error = capsys.readouterr().err
    assert ("is not a folder" if present == "missing" else "no run in") in error
    assert ("only output of evaluate.py" in error) is (present == "evaluation")


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


def test_files_among_runs_are_skipped(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert command.main([str(sweep)]) == 0
    capsys.readouterr()
    paths = sorted(str(path) for path in sweep.iterdir())  # as a shell expands sweep/*
    assert str(sweep / "leaderboard.csv") in paths
    assert command.main([*paths, "--out", str(tmp_path / "out")]) == 0
    assert read_csv(tmp_path / "out") == read_csv(sweep)


def test_an_unwritable_output_folder_is_refused(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "file"
    out.write_text("")
    assert command.main([str(sweep), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {out}: the leaderboard can't be written there (")
    assert error.endswith("); name another folder with --out\n")


def test_the_command_imports_no_heavy_library(sweep: Path, tmp_path: Path, repository: Path):
    code = (
        "import sys; from genre_lightning.comparison.command import main;"
        f"assert main([{str(sweep)!r}, '--out', {str(tmp_path)!r}]) == 0;"
        "heavy = {'torch', 'pytorch_lightning', 'numpy', 'hydra', 'omegaconf', 'sklearn', 'PIL'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repository, capture_output=True)
