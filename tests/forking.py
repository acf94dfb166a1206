"""Processes forked from one that has imported PyTorch, which saves them seconds of imports.

Otherwise they are real: each has its own process id, working directory, environment and output,
and is killed like any other.
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
    """Call a function of an importable module in a new process, which ends with this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    process = context.Process(target=function, args=arguments, daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        # The first call starts the fork server, which does not inherit sys.path.
        patch.setenv("PYTHONPATH", str(REPOSITORY), prepend=os.pathsep)
        process.start()
    return process


class Command:
    """``python *arguments`` in a forked process, with what tests use of ``subprocess.Popen``.

    Not for tests of how Python starts: the modules of ``tests.preloaded`` are already imported.

    Args:
        arguments: a script and its arguments; ``-m``, a module and its arguments; or ``-c``, code
            and its arguments.
        cwd: working directory.
        env: environment; by default that of this process.
        start_new_session: whether the process leads a process group, for ``os.killpg``.
        fork_interpreters: whether Python processes that the command starts are forked as well, see
            :mod:`tests.forked_interpreters`.
        terminal: path of a terminal that becomes the process's own and gets all of its output.
        num_unforked: how many Python processes are started normally before forking begins.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        cwd: Path,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
        fork_interpreters: bool = True,
        terminal: str | None = None,
        num_unforked: int = 0,
    ) -> None:
        self.args = [str(argument) for argument in arguments]
        self._output = Path(tempfile.mkdtemp(prefix="command-"))
        weakref.finalize(self, shutil.rmtree, self._output, ignore_errors=True)
        env = dict(os.environ if env is None else env)
        self._process = start_process(
            *(_run, self.args, str(cwd), env, str(self._output)),
            *(start_new_session, num_unforked if fork_interpreters else None, terminal),
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
        """Wait until the process ends; return its whole stdout and stderr."""
        self.wait(timeout)
        return self.stdout, self.stderr

    @property
    def stdout(self) -> str:
        """The output so far."""
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
        """Suspend the process until SIGCONT; returns once it is suspended."""
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
    """Run a :class:`Command` until it ends."""
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
    num_unforked: int | None,
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
    if num_unforked is not None:
        fork_interpreters(_fork_and_run, num_unforked)
    os._exit(run_as_python(arguments, cwd, env))


def take_terminal(path: str) -> None:
    """Make this process, a session leader, and those that it starts use a terminal."""
    screen = os.open(path, os.O_RDWR)
    ioctl(screen, termios.TIOCSCTTY, 0)
    for number in range(3):
        os.dup2(screen, number)
    os.close(screen)


def _fork_and_run(arguments: list[str], cwd: str, env: dict[str, str]) -> int:
    """:func:`run_as_python` that forks interpreters, as its own Python processes do in turn."""
    fork_interpreters(_fork_and_run)
    return run_as_python(arguments, cwd, env)


def run_as_python(arguments: list[str], cwd: str, env: Mapping[str, str]) -> int:
    """Act as ``python *arguments`` in this forked process, writing to file descriptors 1 and 2.

    Returns:
        The exit status of Python.
    """
    # Restore multiprocessing's defaults: child processes are allowed, by the default start method.
    multiprocessing.current_process().daemon = False
    multiprocessing.set_start_method(None, force=True)
    # Forget the resource tracker of the tests: this process starts its own.
    resource_tracker._resource_tracker.__init__()  # type: ignore[misc]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, name in ((1, "stdout"), (2, "stderr")):
        raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(raw, "utf-8", line_buffering=name == "stderr"))
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    tempfile.tempdir = None  # env may contain another TMPDIR
    if "torch" in sys.modules and "OMP_NUM_THREADS" in env:
        # PyTorch reads the variable when it is loaded, and it already is.
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
    except BaseException as error:  # noqa: BLE001 - as Python itself does
        traceback.print_exc()
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    # Python's own shutdown, which os._exit would skip.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        if not file.closed:
            file.flush()
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return status
