"""Cores are counted, and threads that wait do not keep them busy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from genre_lightning.cores import num_cores


def test_cores_that_this_process_may_use() -> None:
    assert 1 <= num_cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no such limit here")
def test_cores_that_it_may_not_use_are_not_counted() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert num_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is that of PyTorch on Linux")
@pytest.mark.parametrize(
    ("given", "count"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
    ids=["nothing set", "count set", "policy set"],
)
def test_threads_of_a_training_soon_sleep_unless_told_otherwise(
    given: dict[str, str],
    count: str,
    repository: Path,
    tiny_overrides: Callable[..., list[str]],
    tmp_path: Path,
    openmp_tells: None,
) -> None:
    done = subprocess.run(
        [sys.executable, str(repository / "train.py"), *tiny_overrides(model="title")],
        cwd=tmp_path, env={**os.environ, **given}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"GOMP_SPINCOUNT = '{count}'" in done.stderr
