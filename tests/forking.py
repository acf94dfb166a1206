"""Processes that need not import PyTorch: forked from one that has, and otherwise real ones.

Each has its own process id, folder, environment and output, and is killed like any other.
"""

from __future__ import annotations

import atexit
import io
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from tests.forked_interpreters import fork_interpreters, show_environment

REPOSITORY = Path(__file__).resolve().parent.parent

#: The variable that the kernel shows of a forked process, whatever it has no room for.
SHOWN = "GENRE_LIGHTNING_TEST"


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
    """

    def __init__(
        self,
        arguments: Sequence[object],
        cwd: Path,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
    ) -> None:
        self.args = [str(argument) for argument in arguments]
        self._output = Path(tempfile.mkdtemp(prefix="command-"))
        env = dict(os.environ if env is None else env)
        self._process = start_process(
            _run, self.args, str(cwd), env, str(self._output), start_new_session
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
    arguments: list[str], cwd: str, env: dict[str, str], output: str, start_new_session: bool
) -> None:
    if start_new_session:
        os.setsid()
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(os.path.join(output, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    _run_and_fork(arguments, cwd, env)


def _run_and_fork(arguments: list[str], cwd: str, env: dict[str, str]) -> None:
    """:func:`run_as_python`, whose own Python processes are forked as well."""
    fork_interpreters(_run_and_fork)
    resource_tracker._resource_tracker.__init__()  # type: ignore[misc]
    os.environ.clear()
    if sys.platform == "linux":
        show_environment({name: env[name] for name in sorted(env, key=SHOWN.__ne__)})
    tempfile.tempdir = None  # which TMPDIR names
    if "torch" in sys.modules and "OMP_NUM_THREADS" in env:
        # As PyTorch is loaded it goes by this, which was another one then.
        sys.modules["torch"].set_num_threads(int(env["OMP_NUM_THREADS"]))
    run_as_python(arguments, cwd, env)


def run_as_python(arguments: list[str], cwd: str, env: Mapping[str, str]) -> None:
    """Have this forked process be ``python *arguments``; its output goes where 1 and 2 lead."""
    # It may start processes of its own, and in the way that Python would by itself.
    multiprocessing.current_process().daemon = False
    multiprocessing.set_start_method(None, force=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, name in ((1, "stdout"), (2, "stderr")):
        raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(raw, "utf-8", line_buffering=name == "stderr"))
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:0] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
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
    finally:
        # As the interpreter ends, in place of which multiprocessing calls os._exit.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
