"""Commands that share a run folder, a sweep or a cache, and a cache that disappears."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.disks import Disk, small_disk
from tests.leftovers import wait_until
from tests.running import assert_same_run, at_step, printed, recorded, start_script, start_training

pytestmark = pytest.mark.slow

Overrides = Callable[..., list[str]]


def test_two_commands_in_one_run_folder(
    repository: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    folders = {seed: tmp_path / f"seed{seed}" for seed in (1, 2)}
    processes = {
        seed: start_script(
            repository, "train", folder,
            tiny_overrides(f"seed={seed}", f"hydra.run.dir={run}", model="title"),
        )
        for seed, folder in folders.items()
    }  # fmt: skip
    for process in processes.values():
        process.join()
    codes = {seed: process.exitcode for seed, process in processes.items()}
    assert sorted(codes.values(), key=str) == [0, 1], [printed(p) for p in folders.values()]
    (winner,) = (seed for seed, code in codes.items() if code == 0)
    (loser,) = (seed for seed, code in codes.items() if code == 1)
    text = printed(folders[loser])
    (sentence,) = (line for line in text.splitlines() if line.startswith("error: "))
    assert str(run) in sentence and "Traceback" not in text
    assert any(
        words in sentence
        for words in ("another process is running", "holds a run already", "has just trained in")
    )
    # All files in the folder are the winner's.
    result = recorded(run)
    assert (result["status"], result["seed"], result["attempts"]) == ("completed", winner, 1)
    config = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())
    assert config["seed"] == winner
    assert f"seed={winner}" in yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text())


def test_two_commands_for_one_sweep(
    repository: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    args = ["-m", *tiny_overrides(model="title"), "seed=1,2,3", f"hydra.sweep.dir={tmp_path}/sweep"]
    folders = [tmp_path / name for name in ("a", "b")]
    processes = [start_script(repository, "train", folder, args) for folder in folders]
    for process in processes:
        process.join()
    texts = [printed(folder) for folder in folders]
    codes = [process.exitcode for process in processes]
    assert sorted(codes, key=str) == [0, 1], texts
    error = texts[codes.index(1)]
    assert f"error: another command is running the sweep {tmp_path}/sweep" in error
    results = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/result.json")]
    assert [(result["status"], result["attempts"]) for result in results] == [("completed", 1)] * 3


# The cache.


def build_and_hang(builders_file: Path, num_hanging: int) -> None:
    """Makes the first ``num_hanging`` processes that build the poster cache hang at the end."""
    from genre_lightning.inputs import poster_cache

    build = poster_cache._decode_all

    def decode_all(*arguments: Any) -> None:
        build(*arguments)
        with builders_file.open("a") as file:
            file.write(f"{os.getpid()}\n")
        if len(builders_file.read_text().splitlines()) <= num_hanging:
            time.sleep(600)

    poster_cache._decode_all = decode_all  # type: ignore[assignment]


def test_cache_is_built_although_two_of_three_builders_are_killed(
    repository: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    cache, builders_file = tmp_path / "cache", tmp_path / "builders_file"
    builders_file.touch()
    overrides = tiny_overrides("trainer.max_epochs=1", f"data.cache_dir={cache}")
    runs = [tmp_path / name for name in ("a", "b", "c")]
    processes = [
        start_training(repository, run, overrides, build_and_hang, builders_file, 2) for run in runs
    ]

    def printed_by_all() -> str:
        return "".join((tmp_path / f"{run.name}.log").read_text() for run in runs)

    def builders() -> list[str]:
        return builders_file.read_text().splitlines()

    for count in (1, 2):
        wait_until(partial(_has_length, builders, count), 120, printed_by_all)
        os.kill(int(builders()[-1]), signal.SIGKILL)
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    assert sorted(codes, key=str) == [-9, -9, 0], printed_by_all()
    assert len(builders()) == 3
    assert not list(cache.glob(".*tmp*"))
    complete = {path.name for path in cache.iterdir() if path.is_dir()}
    assert len([name for name in complete if name.startswith("posters-")]) == 1
    # Started again, the killed runs use the cache that the third process has built.
    for run, code in zip(runs, codes, strict=True):
        if code != 0:
            process = start_training(repository, run, overrides, build_and_hang, builders_file, 0)
            process.join()
            assert process.exitcode == 0, printed_by_all()
            assert_same_run(run, runs[codes.index(0)])
    assert len(builders()) == 3


def _has_length(read: Callable[[], list[str]], length: int) -> bool:
    return len(read()) == length


def at_third_step(action: Callable[..., None], *arguments: Any) -> None:
    at_step(3, lambda: action(*arguments))


def test_cache_deleted_during_a_run(
    repository: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    overrides = tiny_overrides("trainer.max_epochs=3", f"data.cache_dir={cache}")
    runs = [tmp_path / name for name in ("unbroken", "without", "again")]
    for run in runs:
        more = (at_third_step, shutil.rmtree, cache) if run.name == "without" else ()
        process = start_training(repository, run, overrides, *more)
        process.join()
        assert process.exitcode == 0, (tmp_path / f"{run.name}.log").read_text()
        assert cache.exists() == (run.name != "without")
        assert_same_run(runs[0], run)


def test_cache_that_becomes_read_only_during_a_run(
    repository: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    reference = tmp_path / "reference"
    base = tiny_overrides("trainer.max_epochs=3")
    with small_disk(tmp_path / "disk", 2**28) as disk:
        base.append(f"data.cache_dir={disk.folder}/cache")
        run = tmp_path / "run"
        for folder, more in ((reference, ()), (run, (at_third_step, Disk.change, disk, "ro"))):
            process = start_training(repository, folder, base, *more)
            process.join()
            assert process.exitcode == 0, (tmp_path / f"{folder.name}.log").read_text()
        assert_same_run(reference, run)
        with pytest.raises(OSError, match="Read-only"):
            (disk.folder / "file").touch()

        # Existing cache folders are used; a missing one gives a one-sentence error.
        def train(*more: str) -> tuple[int | None, str]:
            args = [*base, *more, f"hydra.run.dir={tmp_path}/other"]
            process = start_script(repository, "train", tmp_path / "here", args)
            process.join()
            return process.exitcode, printed(tmp_path / "here")

        larger = "model.branches.poster_resnet.input.size=40"
        code, text = train(larger)
        assert code == 1 and "Traceback" not in text, text
        sentence = f"error: cannot write the cache folder {disk.folder}/cache: Read-only file sys"
        assert sentence in text and "cache_dir" in text
        disk.change("rw")
        code, text = train(larger)
        assert code == 0, text
        disk.change("ro")
        shutil.rmtree(run)
        process = start_training(repository, run, base)
        process.join()
        assert process.exitcode == 0
        assert_same_run(reference, run)


def test_cache_deleted_while_it_is_built(
    repository: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    args = tiny_overrides("trainer.max_epochs=1", f"data.cache_dir={cache}")
    args.append(f"hydra.run.dir={tmp_path}/run")
    process = start_script(repository, "train", tmp_path / "here", args, delete_when_built, cache)
    process.join()
    text = printed(tmp_path / "here")
    assert process.exitcode == 1 and "Traceback" not in text, text
    assert f"error: cannot write the cache folder {cache}: No such file or directory" in text
    process = start_script(repository, "train", tmp_path / "here", args)
    process.join()
    assert process.exitcode == 0, printed(tmp_path / "here")
    assert recorded(tmp_path / "run")["status"] == "completed"
    (posters,) = cache.glob("posters-*")
    assert np.fromfile(posters / "images.u8", np.uint8).size > 0


def delete_when_built(cache: Path) -> None:
    """Deletes the cache just before the built posters are renamed into place."""
    from genre_lightning.inputs import poster_cache

    build = poster_cache._decode_all

    def decode_all(*arguments: Any) -> None:
        build(*arguments)
        shutil.rmtree(cache)

    poster_cache._decode_all = decode_all  # type: ignore[assignment]
