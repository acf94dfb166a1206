"""Submitit's processes on this machine, which leave a terminal's signals to the command."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from submitit.local import local


def shield_controllers_from_signals() -> Callable[[], None]:
    """Keep a terminal's signals from the processes that submitit starts from now on.

    The command handles them, and signals the jobs. Otherwise, at Ctrl-C, the process in which
    submitit waits for a job ends with a traceback, and kills the job before it has saved.

    Returns:
        A function that undoes this.
    """
    module: Any = local
    start = module.start_controller

    def start_controller(**arguments: Any) -> Any:
        # A process that is started meanwhile inherits the blocked signals for good.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            return start(**arguments)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    module.start_controller = start_controller
    return lambda: setattr(module, "start_controller", start)
