"""What kind of process this is: one of many, a job of Slurm; and what ends its work."""

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

#: Seconds between two looks at a process of which the system does not tell when it ends.
_LOOK_EVERY = 1.0

#: What is called as a training begins to stop for a signal: by it a sweep that this process runs
#: tells so, where what the job prints goes into a file.
when_stopping: list[Callable[[], None]] = []

_waited_for: set[int] = set()


def is_first_process() -> bool:
    """Whether this is the first, or the only one, of the processes that train together."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    return all(int(os.environ.get(name, 0)) == 0 for name in names)


def under_slurm() -> bool:
    """Whether this is a job of Slurm, whose signals mean other things."""
    return "SLURM_JOB_ID" in os.environ


# Signals.


def ending_signals() -> list[int]:
    """The signals that end a run: Ctrl-C, SIGTERM, and SIGHUP, which comes as a terminal is closed.

    Not SIGTERM under Slurm, where Lightning answers the signal by queueing the job again; nor
    SIGHUP where it is ignored, as under nohup.
    """
    signals = [signal.SIGINT, *([] if under_slurm() else [signal.SIGTERM])]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return [int(number) for number in signals]


def catch_signals(
    signals: Iterable[int], handler: Callable[[int, FrameType | None], None]
) -> dict[int, Any]:
    """Let a handler answer signals, if this is the main thread.

    After the first SIGHUP further ones are ignored, since both the terminal and the shell send it,
    and what is printed to the terminal goes nowhere.

    Returns:
        The handlers that were there before, for :func:`release_signals`; none in another thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}

    def answer(number: int, frame: FrameType | None) -> None:
        if hasattr(signal, "SIGHUP") and number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)
            _leave_terminal()
        handler(number, frame)

    return {number: signal.signal(number, answer) for number in signals}


def release_signals(handlers: dict[int, Any]) -> None:
    """Give signals back the handlers of :func:`catch_signals`; a SIGHUP that came stays ignored."""
    for number, handler in handlers.items():
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


@contextmanager
def signals_raise() -> Iterator[None]:
    """Let the signals that end a run end the block by SystemExit, with their exit code."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    handlers = catch_signals(ending_signals(), leave)
    try:
        yield
    finally:
        release_signals(handlers)


def _leave_terminal() -> None:
    """Print to nowhere instead of a terminal that is gone, where printing is an error."""
    import termios

    for stream in (1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)


# Processes that end together.


def end_with(process: int) -> None:
    """Have this process end as soon as another one of this machine has ended, however it ended.

    It ends at once, as if it were killed too: what is on the disk is whole, and a run resumes from
    its newest checkpoint.

    Args:
        process: its number. Where it has ended already, this process ends now. This process's own
            number does nothing.
    """
    if process == os.getpid() or process in _waited_for or os.name != "posix":
        return
    _waited_for.add(process)
    threading.Thread(target=_end_after, args=(process,), daemon=True).start()


def _end_after(process: int) -> None:
    _wait_for_end(process)
    os._exit(1)


def _wait_for_end(process: int) -> None:
    """Return once a process has ended, whoever has started it."""
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
            _look_for_end(process)
    except ProcessLookupError:
        return
    except OSError:  # an old kernel, or a container that forbids it
        _look_for_end(process)


def _look_for_end(process: int) -> None:
    while is_alive(process):
        time.sleep(_LOOK_EVERY)
