"""A disk that fills up during a command: one error line, no data lost, and it can be resumed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.disks import Disk, small_disk
from tests.running import assert_same_run, printed, recorded, rows, start_script

pytestmark = pytest.mark.slow

Overrides = Callable[..., list[str]]
LARGE = 2**30


def steps(first: int, last: int, count: int) -> list[int]:
    """Sizes of disks in bytes, from almost no room to almost enough."""
    return [first + (last - first) * number // (count - 1) for number in range(count)]


def error_line(text: str, disk: Disk) -> str:
    """The only error line of an output; it names a path on the disk."""
    assert "Traceback" not in text and "unexpected pos" not in text, text
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, text
    assert str(disk.folder) in lines[0] and "No space left on device" in lines[0], text
    return lines[0]


def run_command(repository: Path, script: str, cwd: Path, overrides: list[str]) -> tuple[int, str]:
    """Exit code and output of a command."""
    process = start_script(repository, script, cwd, overrides)
    process.join()
    assert process.exitcode is not None
    return process.exitcode, printed(cwd)


@pytest.fixture(scope="module")
def run_overrides(tiny_overrides: Overrides) -> list[str]:
    return tiny_overrides("trainer.max_epochs=3", "checkpoint_every_n_steps=1", model="title")


@pytest.fixture(scope="module")
def reference_run(
    repository: Path, run_overrides: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int]:
    """A copy of a run from a disk with enough room, and its peak size on disk in bytes."""
    folder = tmp_path_factory.mktemp("reference")
    with small_disk(folder / "disk", LARGE) as disk:
        run = disk.folder / "run"
        code, text = run_command(
            repository, "train", folder / "here", [*run_overrides, f"hydra.run.dir={run}"]
        )
        assert code == 0, text
        shutil.copytree(run, folder / "copy")
        # The previous checkpoint stays on the disk while the next one is written.
        peak = disk.used + (run / "checkpoints" / "last.ckpt").stat().st_size
    return folder / "copy", peak


def test_run_folder_on_a_full_disk(
    repository: Path, run_overrides: list[str], reference_run: tuple[Path, int], tmp_path: Path
) -> None:
    reference, peak = reference_run
    points = set()
    for size in steps(8192, peak, 6):
        folder = tmp_path / str(size)
        with small_disk(folder / "disk", size) as disk:
            run = disk.folder / "run"
            command = [*run_overrides, f"hydra.run.dir={run}"]
            code, text = run_command(repository, "train", folder / "here", command)
            if code == 0:
                assert size > 0.8 * peak, text
                continue
            assert code == 1
            sentence = error_line(text, disk)
            points.add(re.sub(r".*/run/(\S+) could not.*", r"\1", sentence))
            names = [path.name for path in run.rglob(".*") if path.is_file()]
            assert set(names) <= {".lock"}, names
            disk.change(f"size={LARGE}")
            # The same command, plus the override from the message if there is a run to resume.
            more = re.findall(r"go on by (ckpt_path=\S+)", sentence)
            assert bool(more) == (run / "checkpoints" / "last.ckpt").exists()
            code, text = run_command(repository, "train", folder / "here", [*command, *more])
            assert code == 0, text
            assert_same_run(reference, run)
    # The disk was full at different points of the run.
    assert len(points) >= 3, points
    assert {"checkpoints/last.ckpt"} < points, points


def test_cache_on_a_full_disk(repository: Path, tiny_overrides: Overrides, tmp_path: Path) -> None:
    base = tiny_overrides("trainer.max_epochs=1")
    with small_disk(tmp_path / "measured", LARGE) as disk:
        reference = tmp_path / "reference"
        command = [*base, f"data.cache_dir={disk.folder}/cache", f"hydra.run.dir={reference}"]
        code, text = run_command(repository, "train", tmp_path / "here", command)
        assert code == 0, text
        peak = disk.used
    failed = 0
    for size in steps(8192, peak - 4096, 4):
        with small_disk(tmp_path / f"{size}", size) as disk:
            cache, run = disk.folder / "cache", tmp_path / f"run-{size}"
            command = [*base, f"data.cache_dir={cache}", f"hydra.run.dir={run}"]
            code, text = run_command(repository, "train", tmp_path / "here", command)
            if code == 0:
                continue
            failed += 1
            error_line(text, disk)
            assert not list(cache.glob(".*tmp*"))
            before = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
            disk.change(f"size={LARGE}")
            code, text = run_command(repository, "train", tmp_path / "here", command)
            assert code == 0, text
            # Not the checkpoints: they name the folder of the movies, here the cache.
            assert rows(reference) == rows(run)
            assert recorded(reference)["test"] == recorded(run)["test"]
            # Complete cache folders are used as they are.
            for path in cache.iterdir():
                if path.is_dir() and path.name in before:
                    assert path.stat().st_mtime_ns == before[path.name]
    assert failed >= 3


def completed_jobs(sweep: Path) -> dict[str, dict[str, tuple[bytes, int]]]:
    """Every file of the completed jobs, with its content and modification time."""
    found = {}
    for path in sweep.glob("*/result.json"):
        if json.loads(path.read_text())["status"] == "completed":
            found[path.parent.name] = {
                str(file.relative_to(sweep)): (file.read_bytes(), file.stat().st_mtime_ns)
                for file in path.parent.rglob("*")
                if file.is_file() and file.name != ".lock"
            }
    return found


def test_sweep_on_a_full_disk(repository: Path, tiny_overrides: Overrides, tmp_path: Path) -> None:
    base = tiny_overrides("trainer.max_epochs=1", model="title")

    def args(folder: Path) -> list[str]:
        return ["-m", *base, "seed=1,2", f"hydra.sweep.dir={folder}"]

    with small_disk(tmp_path / "measured", LARGE) as disk:
        code, text = run_command(
            repository, "train", tmp_path / "here", args(disk.folder / "sweep")
        )
        assert code == 0, text
        peak = disk.used
    num_completed = set()
    for size in steps(8192, peak - 4096, 4):
        with small_disk(tmp_path / f"{size}", size) as disk:
            sweep = disk.folder / "sweep"
            code, text = run_command(repository, "train", tmp_path / "here", args(sweep))
            assert code == 1 and "Traceback" not in text, text
            assert "No space left on device" in text, text
            if not text.startswith("error: "):
                assert "The same command resumes it" in text
            assert str(sweep) in text
            before = completed_jobs(sweep)
            num_completed.add(len(before))
            disk.change(f"size={LARGE}")
            code, text = run_command(repository, "train", tmp_path / "here", args(sweep))
            assert code == 0, text
            after = completed_jobs(sweep)
            assert len(after) == 2 and {name: after[name] for name in before} == before
            for name in ("leaderboard.csv", "leaderboard.md", "leaderboard.html"):
                assert (sweep / name).stat().st_size > 0
            assert len((sweep / "leaderboard.csv").read_text().splitlines()) == 1 + 2
    assert 0 in num_completed and len(num_completed) >= 2


def test_evaluation_on_a_full_disk(repository: Path, trained_run: Path, tmp_path: Path) -> None:
    def args(folder: Path) -> list[str]:
        return [f"ckpt_path={trained_run}", f"hydra.run.dir={folder}"]

    with small_disk(tmp_path / "measured", LARGE) as disk:
        code, text = run_command(repository, "evaluate", tmp_path / "here", args(disk.folder / "e"))
        assert code == 0, text
        peak, names = disk.used, {path.name for path in (disk.folder / "e").iterdir()}
    with small_disk(tmp_path / "disk", 8192) as disk:
        for size in steps(8192, peak - 4096, 3):
            disk.change(f"size={max(size, disk.used)}")
            code, text = run_command(
                repository, "evaluate", tmp_path / "here", args(disk.folder / "e")
            )
            assert code == 1, text
            error_line(text, disk)
        disk.change(f"size={LARGE}")
        code, text = run_command(repository, "evaluate", tmp_path / "here", args(disk.folder / "e"))
        assert code == 0, text
        assert {path.name for path in (disk.folder / "e").iterdir()} == names


def test_study_on_a_full_disk(repository: Path, tiny_overrides: Overrides, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    base = tiny_overrides("trainer.max_epochs=1", "sweep.n_trials=2", model="title")

    def args(folder: Path) -> list[str]:
        return ["sweep=optuna", *base, f"hydra.sweep.dir={folder}"]

    with small_disk(tmp_path / "disk", 32 * 1024) as disk:
        sweep = disk.folder / "sweep"
        for size in (32 * 1024, 128 * 1024):
            disk.change(f"size={size}")
            code, text = run_command(repository, "train", tmp_path / "here", args(sweep))
            assert code == 1 and "Traceback" not in text, text
            assert str(sweep) in text and re.search("disk is full|No space left", text), text
        disk.change(f"size={LARGE}")
        code, text = run_command(repository, "train", tmp_path / "here", args(sweep))
        assert code == 0, text
        results: list[Any] = [json.loads(p.read_text()) for p in sweep.glob("*/result.json")]
        assert [result["status"] for result in results] == ["completed"] * 2
