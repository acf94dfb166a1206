"""Cores are counted and shared with other processes; waiting threads do not keep them busy."""

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


def test_num_cores_is_in_range() -> None:
    assert 1 <= num_cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no such limit here")
def test_cores_outside_the_affinity_are_not_counted() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert num_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("cores", "idle", "own", "threads"),
    [
        (2, 10.0, 10.0, 2),  # an idle machine
        (2, 6.0, 10.0, 2),  # a browser
        (2, 0.0, 10.0, 1),  # another training of one thread
        (2, 0.0, 3.0, 1),  # four busy processes
        (8, 30.0, 10.0, 4),  # another training of four threads
        (8, 56.0, 10.0, 8),  # another training that has just started
        (1, 0.0, 1.0, 1),
    ],
)
def test_training_takes_the_cores_that_others_leave(
    cores: int, idle: float, own: float, threads: int
) -> None:
    before = CoreUse(now=100.0, idle=7.0, own=3.0)
    after = CoreUse(now=110.0, idle=7.0 + idle, own=3.0 + own)
    assert num_threads(cores, before, after) == threads


def test_short_interval_does_not_limit_the_threads() -> None:
    assert num_threads(4, CoreUse(1.0, 0.0, 0.0), CoreUse(1.1, 0.0, 0.0)) == 4


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no such limit here")
def test_idle_time_is_of_the_cores_of_this_process() -> None:
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


#: In a forked process PyTorch is already imported, so it is hidden until ``import torch``.
WATCH = """
import sys, time
preloaded = sys.modules.pop("torch", None)
from genre_lightning.cores import MIN_SECONDS, share_cores, set_threads
share_cores()
deadline = time.monotonic() + MIN_SECONDS
if preloaded:
    sys.modules["torch"] = preloaded
import torch
while time.monotonic() < deadline: time.sleep(0.01)
print(torch.get_num_threads(), set_threads(), torch.get_num_threads())
"""


@pytest.fixture(scope="module")
def beside_busy_processes(repository: Path) -> dict[str | None, list[int]]:
    """The numbers that WATCH prints while all cores are busy, by value of OMP_NUM_THREADS."""
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    run_command(["-c", ""], repository)  # starts the fork server before the busy processes
    # At the lowest priority, they use the cores that the two commands leave, and hardly slow them.
    busy = [
        subprocess.Popen(["nice", "-n", "19", sys.executable, "-c", "while True: pass"])
        for _ in range(num_cores())
    ]
    try:
        time.sleep(0.1)
        # PyTorch reads the variable when it is loaded; the forked process sets the number itself.
        limited = Command(["-c", WATCH], repository, {**env, "OMP_NUM_THREADS": "2"})
        chosen = subprocess.run(
            [sys.executable, "-c", WATCH], cwd=repository, env=env, text=True, capture_output=True
        )
        printed = {None: chosen.stdout, "2": limited.communicate()[0]}
        return {value: [*map(int, text.split())] for value, text in printed.items()}
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what the cores do")
@pytest.mark.parametrize("num_threads_set", [None, "2"], ids=["nothing set", "threads set"])
def test_busy_cores_are_left_to_other_processes(
    num_threads_set: str | None, beside_busy_processes: dict[str | None, list[int]]
) -> None:
    before, chosen, after = beside_busy_processes[num_threads_set]
    assert chosen == after
    assert chosen == (1 if num_threads_set is None else before)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is that of PyTorch on Linux")
@pytest.mark.parametrize(
    ("variables", "count"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
    ids=["nothing set", "count set", "policy set"],
)
def test_waiting_threads_soon_sleep_unless_configured(
    variables: dict[str, str],
    count: str,
    repository: Path,
    tiny_overrides: Callable[..., list[str]],
    tmp_path: Path,
    verbose_openmp: None,
) -> None:
    command = repository / "train.py", tiny_overrides("trainer.max_epochs=1", model="title")
    env = {**os.environ, **variables}
    # One case runs a whole training, to check that PyTorch loads the same OpenMP as the others.
    settings = openmp_output(*command, tmp_path, env, whole=not variables)
    assert f"GOMP_SPINCOUNT = '{count}'" in settings
