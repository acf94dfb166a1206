"""The CPU cores available to this process, which other processes may share."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

#: Iterations that a waiting OpenMP thread spins before it sleeps: tens of microseconds.
SPIN_COUNT = 10_000

#: If other processes use more than this share of the cores, training leaves those cores to them. A
#: browser uses less.
OTHERS_SHARE = 0.25

#: Minimum time over which the cores' use is meaningful.
MIN_SECONDS = 0.5

_STAT = Path("/proc/stat")


def core_ids() -> set[int]:
    """Ids of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(core_ids())


def limit_spinning() -> None:
    """Make waiting OpenMP threads sleep sooner instead of spinning.

    Call this before PyTorch is imported. GNU OpenMP, which PyTorch uses on Linux, lets a waiting
    thread spin for milliseconds. If another training uses the same cores, this keeps the awaited
    thread from running, in every operation. ``GOMP_SPINCOUNT`` or ``OMP_WAIT_POLICY`` in the
    environment take precedence.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


@dataclass(frozen=True)
class CoreUse:
    """Cumulative idle time of this process's cores, and its own CPU time.

    Attributes:
        now: clock time in seconds.
        idle: idle seconds, summed over the cores.
        own: CPU seconds of this process and its terminated children.
    """

    now: float
    idle: float
    own: float


def core_use(stat: str | None = None) -> CoreUse | None:
    """Measure the cores' use until now; None if the system does not report it.

    Args:
        stat: content of ``/proc/stat``; None to read the file.
    """
    if stat is None:
        try:
            stat = _STAT.read_text("ascii")
        except OSError:
            return None
    core_names = {f"cpu{number}" for number in core_ids()}
    lines = [line.split() for line in stat.splitlines()]
    # user, nice, system, idle, iowait, ...: a core that waits for a disk counts as idle.
    ticks = sum(int(line[4]) + int(line[5]) for line in lines if line and line[0] in core_names)
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return CoreUse(time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), own)


def num_threads(cores: int, before: CoreUse, after: CoreUse) -> int:
    """Number of threads for training: the cores that other processes leave free, at least one.

    With more threads than free cores, the threads wait for each other in every operation, which is
    slower than a single thread.

    Args:
        cores: number of cores that this process may use.
        before: the cores' use at the start of an interval.
        after: the cores' use at the end of the interval.
    """
    seconds = after.now - before.now
    if seconds < MIN_SECONDS:
        return cores
    busy = cores - (after.idle - before.idle + after.own - before.own) / seconds
    if busy <= OTHERS_SHARE * cores:
        return cores
    return max(1, round(cores - busy))


_use_at_start: CoreUse | None = None


def share_cores() -> None:
    """Share the cores with other processes; call this before PyTorch is imported.

    Limits spinning, see :func:`limit_spinning`, and starts to measure the cores' use for
    :func:`set_threads`. PyTorch's own number of threads is kept if ``OMP_NUM_THREADS`` is set, if
    PyTorch is already imported (a notebook, or the second job of a sweep in one process), or if the
    system does not report the cores' use.
    """
    global _use_at_start
    limit_spinning()
    if "OMP_NUM_THREADS" not in os.environ and "torch" not in sys.modules:
        _use_at_start = core_use()


def set_threads() -> int:
    """Use as many PyTorch threads as cores were free since :func:`share_cores`; return the number.

    By then the command has spent seconds on imports, enough for a measurement.
    """
    global _use_at_start
    import torch

    after = None if _use_at_start is None else core_use()
    if _use_at_start is not None and after is not None:
        cores = min(num_cores(), torch.get_num_threads())
        torch.set_num_threads(num_threads(cores, _use_at_start, after))
        _use_at_start = None
    return torch.get_num_threads()
