"""The CPU cores of this process, which other commands on the machine may share."""

from __future__ import annotations

import os

#: Looks that a thread takes before it sleeps: some tens of microseconds.
SPIN_COUNT = 10_000


def num_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_spinning() -> None:
    """Have the threads of one operation sleep where they would wait long for each other.

    To be called before PyTorch is imported. GNU's OpenMP, with which PyTorch computes on Linux,
    lets them look again and again for milliseconds instead. Where another training has the same
    cores, the one that is waited for does not run meanwhile, in every operation. What
    ``GOMP_SPINCOUNT`` or ``OMP_WAIT_POLICY`` says in the environment stands.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
