"""Processes that need not import PyTorch: forked from one that has, and otherwise real ones.

Each has its own process id, folder, environment and output, and is killed like any other.
"""

from __future__ import annotations

import atexit
import io
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from fcntl import ioctl
from multiprocessing import resource_tracker
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from tests.forked_interpreters import fork_interpreters

REPOSITORY = Path(__file__).resolve().parent.parent


def start_process(function: Callable[..., Any], *arguments: Any) -> ForkServerProcess:
    """Call a function of an importable module in a process of its own; it ends with this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    process = context.Process(target=function, args=arguments, daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        # The first call starts the process that forks, which does not take over sys.path.
        patch.setenv("PYTHONPATH", str(REPOSITORY), prepend=os.pathsep)
        process.start()
    return process


class Command:
    """``python *arguments`` in a process of its own, with what tests use of ``subprocess.Popen``.

    Only for tests that are not about how Python starts: modules of ``tests.preloaded`` are there
    from the beginning.

    Args:
        arguments: a script and its arguments; ``-m``, a module and its arguments; or ``-c``, code
            and its arguments.
        cwd: its folder.
        env: its environment; by default that of this process.
        start_new_session: whether it leads a group of processes, for ``os.killpg``.
        terminal: path of one that is its own from then on; what it prints goes there alone.
        fork_interpreters: whether Python processes that it starts are forked as well, see
            :mod:`tests.forked_interpreters`.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        cwd: Path,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
        fork_interpreters: bool = True,
        terminal: str | None = None,
        by_python: int = 0,
    ) -> None:
        self.args = [str(argument) for argument in arguments]
        self._output = Path(tempfile.mkdtemp(prefix="command-"))
        weakref.finalize(self, shutil.rmtree, self._output, ignore_errors=True)
        env = dict(os.environ if env is None else env)
        self._process = start_process(
            *(_run, self.args, str(cwd), env, str(self._output)),
            *(start_new_session, by_python if fork_interpreters else None, terminal),
        )
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait until it ends: all that it printed, and its errors."""
        self.wait(timeout)
        return self.stdout, self.stderr

    @property
    def stdout(self) -> str:
        """What it has printed until now."""
        return self._read("stdout")

    @property
    def stderr(self) -> str:
        return self._read("stderr")

    def _read(self, name: str) -> str:
        file = self._output / name
        return file.read_text("utf-8") if file.exists() else ""

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def stop(self) -> None:
        """Have it stand still until SIGCONT."""
        self.send_signal(signal.SIGSTOP)
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_command(
    arguments: Sequence[object],
    cwd: Path,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> Command:
    """A :class:`Command` that has ended."""
    command = Command(arguments, cwd, env)
    try:
        command.wait(timeout)
    finally:
        command.kill()
    return command


def _run(
    arguments: list[str],
    cwd: str,
    env: dict[str, str],
    output: str,
    start_new_session: bool,
    by_python: int | None,
    terminal: str | None,
) -> None:
    if start_new_session:
        os.setsid()
    if terminal is not None:
        take_terminal(terminal)
    else:
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(os.path.join(output, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, number)
            os.close(file)
    if by_python is not None:
        fork_interpreters(_fork_and_run, by_python)
    os._exit(run_as_python(arguments, cwd, env))


def take_terminal(path: str) -> None:
    """Have a terminal for this process, which leads a session, and for those that it starts."""
    screen = os.open(path, os.O_RDWR)
    ioctl(screen, termios.TIOCSCTTY, 0)
    for number in range(3):
        os.dup2(screen, number)
    os.close(screen)


def _fork_and_run(arguments: list[str], cwd: str, env: dict[str, str]) -> int:
    """:func:`run_as_python`, with Python processes that are forked, and those of these as well."""
    fork_interpreters(_fork_and_run)
    return run_as_python(arguments, cwd, env)


def run_as_python(arguments: list[str], cwd: str, env: Mapping[str, str]) -> int:
    """Have this forked process be ``python *arguments``; its output goes where 1 and 2 lead.

    Returns:
        The status with which Python would end.
    """
    # It may start processes of its own, and in the way that Python would by itself.
    multiprocessing.current_process().daemon = False
    multiprocessing.set_start_method(None, force=True)
    # One that it has to start, and not that of the tests.
    resource_tracker._resource_tracker.__init__()  # type: ignore[misc]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, name in ((1, "stdout"), (2, "stderr")):
        raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(raw, "utf-8", line_buffering=name == "stderr"))
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    tempfile.tempdir = None  # TMPDIR may name another
    if "torch" in sys.modules and "OMP_NUM_THREADS" in env:
        # PyTorch goes by it as it is loaded, which it has been.
        sys.modules["torch"].set_num_threads(int(env["OMP_NUM_THREADS"]))
    sys.path[:0] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    status = 0
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # noqa: BLE001 - as Python does at the top
        traceback.print_exc()
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    # As Python ends, in place of which os._exit is called.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        if not file.closed:
            file.flush()
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return status
