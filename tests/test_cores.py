"""Cores are counted, and threads that wait do not keep them busy."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from genre_lightning.cores import CoreUse, core_use, num_cores, num_threads
from tests.forking import Command, run_command
from tests.openmp import openmp_output


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


@pytest.mark.parametrize(
    ("cores", "idle", "own", "threads"),
    [
        (2, 10.0, 10.0, 2),  # nobody else
        (2, 6.0, 10.0, 2),  # a browser
        (2, 0.0, 10.0, 1),  # another training of one thread
        (2, 0.0, 3.0, 1),  # four busy processes
        (8, 30.0, 10.0, 4),  # another training of four threads
        (8, 56.0, 10.0, 8),  # another one that begins
        (1, 0.0, 1.0, 1),
    ],
)
def test_a_training_takes_the_cores_that_others_leave(
    cores: int, idle: float, own: float, threads: int
) -> None:
    before = CoreUse(now=100.0, idle=7.0, own=3.0)
    after = CoreUse(now=110.0, idle=7.0 + idle, own=3.0 + own)
    assert num_threads(cores, before, after) == threads


def test_a_moment_says_nothing_of_the_cores() -> None:
    assert num_threads(4, CoreUse(1.0, 0.0, 0.0), CoreUse(1.1, 0.0, 0.0)) == 4


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no such limit here")
def test_idle_time_is_that_of_the_own_cores() -> None:
    first = min(os.sched_getaffinity(0))
    stat = (
        "cpu  9 9 9 999 9 0 0 0 0 0\n"
        f"cpu{first} 1 2 3 400 50 6 7 8 0 0\n"
        f"cpu{first + 1} 1 2 3 4000 500 6 7 8 0 0\nintr 7\n"
    )
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {first})
    try:
        use = core_use(stat)
    finally:
        os.sched_setaffinity(0, before)
    assert use is not None
    assert use.idle == 450 / os.sysconf("SC_CLK_TCK")


#: Where PyTorch is there from the beginning, as in a forked process, it comes in the same place.
WATCH = """
import sys, time
there = sys.modules.pop("torch", None)
from genre_lightning.cores import MIN_SECONDS, share_cores, set_threads
share_cores()
ends = time.monotonic() + MIN_SECONDS
if there:
    sys.modules["torch"] = there
import torch
while time.monotonic() < ends: time.sleep(0.01)
print(torch.get_num_threads(), set_threads(), torch.get_num_threads())
"""


@pytest.fixture(scope="module")
def beside_busy_processes(repository: Path) -> dict[str | None, list[int]]:
    """What two commands print on cores that are busy: without OMP_NUM_THREADS, and with "2"."""
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    run_command(["-c", ""], repository)  # the process that forks is there before they are
    # They take what the two leave of the cores, and hardly hold them up.
    busy = [
        subprocess.Popen(["nice", "-n", "19", sys.executable, "-c", "while True: pass"])
        for _ in range(num_cores())
    ]
    try:
        time.sleep(0.1)
        # PyTorch takes the set number as it is loaded, or is told it by the process that forks.
        limited = Command(["-c", WATCH], repository, {**env, "OMP_NUM_THREADS": "2"})
        chosen = subprocess.run(
            [sys.executable, "-c", WATCH], cwd=repository, env=env, text=True, capture_output=True
        )
        printed = {None: chosen.stdout, "2": limited.communicate()[0]}
        return {given: [*map(int, text.split())] for given, text in printed.items()}
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what the cores do")
@pytest.mark.parametrize("given", [None, "2"], ids=["nothing set", "threads set"])
def test_cores_that_others_keep_busy_are_left_to_them(
    given: str | None, beside_busy_processes: dict[str | None, list[int]]
) -> None:
    before, chosen, after = beside_busy_processes[given]
    assert chosen == after
    assert chosen == (1 if given is None else before)


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
    verbose_openmp: None,
) -> None:
    command = repository / "train.py", tiny_overrides("trainer.max_epochs=1", model="title")
    env = {**os.environ, **given}
    # One is a whole training: PyTorch loads what the others load.
    settings = openmp_output(*command, tmp_path, env, whole=not given)
    assert f"GOMP_SPINCOUNT = '{count}'" in settings
