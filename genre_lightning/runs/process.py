"""What kind of process this is: one of many, a job of Slurm; and how a signal ends its work."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def is_first_process() -> bool:
    """Whether this is the first, or the only one, of the processes that train together."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    return all(int(os.environ.get(name, 0)) == 0 for name in names)


def under_slurm() -> bool:
    """Whether this is a job of Slurm, whose signals mean other things."""
    return "SLURM_JOB_ID" in os.environ


@contextmanager
def signals_raise() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the block by SystemExit, with the exit code of such an end.

    Not SIGTERM under Slurm, where Lightning answers the signal by queueing the job again.
    """
    signals = [signal.SIGINT, *([] if under_slurm() else [signal.SIGTERM])]
    if threading.current_thread() is not threading.main_thread():
        signals = []

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
