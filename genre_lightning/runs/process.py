"""The current process: its role in distributed training, Slurm, signals, and linked lifetimes."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from genre_lightning.files import is_alive

#: Seconds between checks whether a process has ended, if the system can't notify us.
_POLL_SECONDS = 1.0

#: Called when a training begins to stop because of a signal. A sweep in this process uses this to
#: tell the user, since the job's output goes into a file.
stop_callbacks: list[Callable[[], None]] = []

_watched_processes: set[int] = set()


def is_first_process() -> bool:
    """Whether this is the first, or only, process of a distributed training."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    return all(int(os.environ.get(name, 0)) == 0 for name in names)


def under_slurm() -> bool:
    """Whether this is a Slurm job, in which signals have other meanings."""
    return "SLURM_JOB_ID" in os.environ


# Signals.


def ending_signals() -> list[int]:
    """The signals that end a run: Ctrl-C, SIGTERM, and SIGHUP, sent when a terminal is closed.

    Excludes SIGTERM under Slurm, where Lightning requeues the job, and SIGHUP if it is ignored, as
    under nohup.
    """
    signals = [signal.SIGINT, *([] if under_slurm() else [signal.SIGTERM])]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return [int(number) for number in signals]


def catch_signals(
    signals: Iterable[int], handler: Callable[[int, FrameType | None], None]
) -> dict[int, Any]:
    """Install a handler for signals; does nothing outside the main thread.

    After the first SIGHUP, further ones are ignored, since both the terminal and the shell send it,
    and output to the terminal is discarded.

    Returns:
        The previous handlers, for :func:`release_signals`; empty outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}

    def handle(number: int, frame: FrameType | None) -> None:
        if hasattr(signal, "SIGHUP") and number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)
            _redirect_closed_terminal()
        handler(number, frame)

    return {number: signal.signal(number, handle) for number in signals}


def release_signals(handlers: dict[int, Any]) -> None:
    """Restore the handlers from :func:`catch_signals`; SIGHUP stays ignored once received."""
    for number, handler in handlers.items():
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Make the signals that end a run raise SystemExit in the block, with their exit code."""

    def exit_with_code(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    handlers = catch_signals(ending_signals(), exit_with_code)
    try:
        yield
    finally:
        release_signals(handlers)


@contextmanager
def hold_signals() -> Iterator[None]:
    """Make the signals that end a run wait until the imports in the block are done.

    PyTorch goes on without a module whose import a signal has ended, so that a later use of it
    fails. The second signal of a kind does not wait. Raises SystemExit as :func:`raise_on_signals`.
    """
    received: list[int] = []

    def hold(number: int, frame: object) -> None:
        if number in received:
            raise SystemExit(128 + number)
        received.append(number)

    handlers = catch_signals(ending_signals(), hold)
    try:
        yield
    finally:
        release_signals(handlers)
    if received:
        raise SystemExit(128 + received[0])


def _redirect_closed_terminal() -> None:
    """Redirect output from a closed terminal to nowhere, since printing there raises an error."""
    import termios

    for stream in (1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                devnull = os.open(os.devnull, os.O_WRONLY)
                os.dup2(devnull, stream)
                os.close(devnull)


# Processes that end together.


def exit_when_process_ends(process: int) -> None:
    """End this process as soon as another process on this machine has ended for any reason.

    It exits immediately, without cleanup, as if killed. Files on disk stay complete, and the run
    can be resumed from its newest checkpoint.

    Args:
        process: id of the other process. If that has already ended, this process ends now. This
            process's own id has no effect.
    """
    if process == os.getpid() or process in _watched_processes or os.name != "posix":
        return
    _watched_processes.add(process)
    threading.Thread(target=_exit_after, args=(process,), daemon=True).start()


def _exit_after(process: int) -> None:
    _wait_for_end(process)
    os._exit(1)


def _wait_for_end(process: int) -> None:
    """Wait until a process has ended; it need not be a child of this one."""
    try:
        if sys.platform == "linux":
            end = select.poll()
            end.register(os.pidfd_open(process), select.POLLIN)
            end.poll()
        elif sys.platform == "darwin":
            kind, what = select.KQ_FILTER_PROC, select.KQ_NOTE_EXIT
            with select.kqueue() as queue:
                queue.control([select.kevent(process, kind, select.KQ_EV_ADD, what)], 1)
        else:
            _poll_until_end(process)
    except ProcessLookupError:
        return
    except OSError:  # old kernels, or containers that forbid it
        _poll_until_end(process)


def _poll_until_end(process: int) -> None:
    while is_alive(process):
        time.sleep(_POLL_SECONDS)
