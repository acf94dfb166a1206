"""Processes of submitit on this machine, which leave a terminal's signals to the command."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from submitit.local import local


def start_controllers_apart() -> Callable[[], None]:
    """Keep a terminal's signals from the processes that submitit starts from now on.

    The command answers them, and tells the jobs. At Ctrl-C the process in which submitit waits for
    a job ends by a traceback, and kills the job before it has saved.

    Returns:
        What undoes it.
    """
    changed: Any = local
    start = changed.start_controller

    def start_controller(**how: Any) -> Any:
        # What is blocked here is blocked for good in a process that is started meanwhile.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            return start(**how)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    changed.start_controller = start_controller
    return lambda: setattr(changed, "start_controller", start)
