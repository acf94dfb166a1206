"""The CPU cores of this process, which other commands on the machine may share."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

#: How often a waiting OpenMP thread spins before it sleeps: some tens of microseconds.
SPIN_COUNT = 10_000

#: Share of the cores from which on a training leaves to other processes what they use of them. A
#: browser uses less.
OTHERS_SHARE = 0.25

#: Over less time the use of the cores says nothing.
MIN_SECONDS = 0.5

_STAT = Path("/proc/stat")


def core_ids() -> set[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(core_ids())


def limit_spinning() -> None:
    """Have OpenMP's threads sleep, rather than spin, where they wait long for each other.

    To be called before PyTorch is imported. GNU's OpenMP, with which PyTorch computes on Linux,
    lets a waiting thread spin for milliseconds. Where another training has the same cores, that
    keeps the thread that is waited for from running, in every operation. What ``GOMP_SPINCOUNT`` or
    ``OMP_WAIT_POLICY`` says in the environment stands.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


@dataclass(frozen=True)
class CoreUse:
    """Seconds that the cores of this process have been idle, and that it has computed, until now.

    Attributes:
        now: seconds of a clock.
        idle: summed over the cores.
        own: CPU seconds of this process, and of those of its children that have ended.
    """

    now: float
    idle: float
    own: float


def core_use(stat: str | None = None) -> CoreUse | None:
    """What the cores have done until now; None where the system doesn't tell.

    Args:
        stat: what ``/proc/stat`` holds; None to read it.
    """
    if stat is None:
        try:
            stat = _STAT.read_text("ascii")
        except OSError:
            return None
    wanted = {f"cpu{number}" for number in core_ids()}
    lines = [line.split() for line in stat.splitlines()]
    # user, nice, system, idle, iowait, ...: a core that waits for a disk is free as well.
    ticks = sum(int(line[4]) + int(line[5]) for line in lines if line and line[0] in wanted)
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    return CoreUse(time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), own)


def num_threads(cores: int, before: CoreUse, after: CoreUse) -> int:
    """Threads for a training: the cores that others leave, and at least one.

    More threads than free cores wait for each other in every operation, which takes longer than
    one thread would.

    Args:
        cores: that this process may use.
        before: their use at the beginning of a time.
        after: and at its end.
    """
    seconds = after.now - before.now
    if seconds < MIN_SECONDS:
        return cores
    others = cores - (after.idle - before.idle + after.own - before.own) / seconds
    if others <= OTHERS_SHARE * cores:
        return cores
    return max(1, round(cores - others))


_at_start: CoreUse | None = None


def share_cores() -> None:
    """Have this command share the cores with others; to be called before PyTorch is imported.

    Its threads do not spin, see :func:`limit_spinning`, and from now on the cores are watched, for
    :func:`set_threads`. They are not, and PyTorch's own choice stands, where ``OMP_NUM_THREADS``
    says how many threads there are, where PyTorch is there already (a notebook, or the second job
    of a sweep in one process), and where the system doesn't tell.
    """
    global _at_start
    limit_spinning()
    if "OMP_NUM_THREADS" not in os.environ and "torch" not in sys.modules:
        _at_start = core_use()


def set_threads() -> int:
    """Have PyTorch use as many threads as cores were free since :func:`share_cores`; how many.

    Seconds have gone by then, in which the command imported what it needs.
    """
    global _at_start
    import torch

    after = None if _at_start is None else core_use()
    if _at_start is not None and after is not None:
        cores = min(num_cores(), torch.get_num_threads())
        torch.set_num_threads(num_threads(cores, _at_start, after))
        _at_start = None
    return torch.get_num_threads()
