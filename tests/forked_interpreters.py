"""Forks the Python processes that a forked command would start.

joblib's workers, submitit's jobs and torchrun's processes each import PyTorch and Lightning, which
takes 3 CPU seconds. A command that calls :func:`fork_interpreters` at its start immediately forks a
twin, which waits. Whenever the command would start Python, it sends the arguments of the system
call to the twin, and the twin forks instead.

Such a test proves how processes cooperate, wait, handle signals, are killed and end. The fork is a
child of the requesting process, has the files, folder, environment and session that this process
requested, and has none of the state that this process has acquired since its start.

Such a test does not prove that a process finds its modules, initialises itself on import, or obeys
variables that are read while PyTorch is loaded: all of that has happened before the fork. So some
test also starts each kind of process normally: joblib's in
``test_workers_that_have_no_job_yet_end``, submitit's in ``test_jobs_side_by_side``, torchrun's in
``test_processes_end_with_the_one_that_started_them``.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Options of the Python interpreter that a fork can ignore.
IGNORED_OPTIONS = {"-u", "-s", "-E", "-B", "-I"}

#: HIGH is above every file descriptor that a child expects, END above every open one.
HIGH, END = 512, 1024

CLONE_PARENT, SYS_CLONE = 0x00008000, {"x86_64": 56, "aarch64": 220}.get(os.uname().machine)
PR_SET_PDEATHSIG = 1

#: Acts as ``python *arguments`` in a folder and an environment; returns the exit status.
Run = Callable[[list[str], str, dict[str, str]], int]


def fork_interpreters(run: Run, num_unforked: int = 0) -> None:
    """From now on, fork whenever this process would start Python; other programs start normally.

    Call this first in a process, since forks begin with its present state. Does nothing on a
    platform where processes can't be forked this way.

    Args:
        run: called by each fork.
        num_unforked: how many Python processes are started normally before forking begins.
    """
    if sys.platform != "linux" or SYS_CLONE is None:
        return
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        _serve(theirs, run)
    theirs.close()
    import _posixsubprocess

    start: Any = _posixsubprocess.fork_exec
    lock = threading.Lock()

    def fork_exec(*parameters: Any) -> int:
        # The signature is that of Python's own function.
        (args, _, close_fds, pass_fds, cwd, env, stdin, _, _, stdout, _, stderr, *_) = parameters
        error_pipe, new_session = parameters[13], parameters[15]
        arguments = _arguments([os.fsdecode(arg) for arg in args])
        if arguments is None or not close_fds or any(map(callable, parameters[21:])):  # preexec_fn
            return int(start(*parameters))
        nonlocal num_unforked
        with lock:
            num_unforked -= 1
            if num_unforked >= 0:
                return int(start(*parameters))
        if env is None:
            variables = dict(os.environ)
        else:
            pairs = (os.fsdecode(entry).partition("=") for entry in env)
            variables = {name: value for name, _, value in pairs}
        # Without the pipe that reports a failed exec.
        passed = {number: number for number in pass_fds if number != error_pipe}
        files = {0: stdin, 1: stdout, 2: stderr, **passed}
        request = arguments, os.fsdecode(cwd or os.getcwd()), variables, list(files), new_session
        message = pickle.dumps(request)
        with lock:
            socket.send_fds(
                ours,
                [len(message).to_bytes(8, "little")],
                [number if file == -1 else file for number, file in files.items()],
            )
            ours.sendall(message)
            return int.from_bytes(_receive(ours, 8), "little")

    _posixsubprocess.fork_exec = fork_exec
    subprocess._fork_exec = fork_exec  # type: ignore[attr-defined]


def _arguments(command: list[str]) -> list[str] | None:
    """Arguments of Python; None for another program, or with options that can't be ignored."""
    if command[0] != sys.executable:
        return None
    rest = command[1:]
    while rest and rest[0] in IGNORED_OPTIONS:
        del rest[0]
    return rest if rest and (rest[0] in ("-m", "-c") or not rest[0].startswith("-")) else None


def _receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _serve(requests: socket.socket, run: Run) -> None:
    """Act as the twin: fork on request of the other process, and end with it."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Signals that a terminal or killpg sends to the command's group are not for the twin.
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    # Close all other files: a pipe that the command closes must not stay open here.
    os.closerange(0, requests.fileno())
    os.closerange(requests.fileno() + 1, END)
    while True:
        size, files, _, _ = socket.recv_fds(requests, 8, HIGH)
        try:
            request = pickle.loads(_receive(requests, int.from_bytes(size, "little")))
        except EOFError:
            os._exit(0)
        ctypes.pythonapi.PyOS_BeforeFork()
        # Not os.fork: the new process must be a child of the requesting process.
        pid = libc.syscall(SYS_CLONE, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            ctypes.pythonapi.PyOS_AfterFork_Child()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            _begin(files, run, *request)
        ctypes.pythonapi.PyOS_AfterFork_Parent()
        for file in files:
            os.close(file)
        requests.sendall(pid.to_bytes(8, "little"))


def _begin(
    files: list[int],
    run: Run,
    arguments: list[str],
    cwd: str,
    env: dict[str, str],
    numbers: list[int],
    new_session: bool,
) -> None:
    """Run the request, with each file at its file descriptor."""
    os.chdir(cwd)
    if new_session:
        os.setsid()
    high = [fcntl.fcntl(file, fcntl.F_DUPFD, HIGH) for file in files]
    os.closerange(0, HIGH)
    for file, number in zip(high, numbers, strict=True):
        os.dup2(file, number)
    os.closerange(HIGH, END)
    if arguments[:2] == ["-m", "submitit.local._local"]:
        _wait_for_the_job(arguments[2])
    os._exit(run(arguments, cwd, env))


def _wait_for_the_job(folder: str) -> None:
    """Wait for a file that submitit writes only after starting a job, relying on a slow start."""
    job = str(os.getpid())
    submitted = Path(folder.replace("%j", job)) / f"{job}_submitted.pkl"
    deadline = time.monotonic() + 60
    while not submitted.exists():
        assert time.monotonic() < deadline, f"{submitted} was not written"
        time.sleep(0.01)
