"""What a forked command starts as ``python ...`` is forked as well.

joblib's workers, submitit's jobs and torchrun's processes each import PyTorch and Lightning, 3 CPU
seconds. A command that calls :func:`fork_interpreters` as it begins has a twin, forked there and
then, which waits. Where the command would have the kernel start Python, it sends the twin what it
would have given the kernel, and the twin forks.

What such a test proves: how processes work together, wait, are signalled, killed and end. The fork
is a child of the process that asked, with the files, folder, environment and session that it asked
for, and begins with nothing of what that process has done since its own beginning.

What it does not prove: that a process finds its modules, sets itself up as it is imported, or goes
by variables that are read while PyTorch is loaded, since all of that has happened before. So each
kind of process is also started by Python in some test: joblib's in
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

#: Options of Python between its name and what it runs, which a fork may do without.
IGNORED_OPTIONS = {"-u", "-s", "-E", "-B", "-I"}

#: Above every number at which a started process expects a file, and above all that are open.
HIGH, END = 512, 1024

CLONE_PARENT, SYS_CLONE = 0x00008000, {"x86_64": 56, "aarch64": 220}.get(os.uname().machine)
PR_SET_PDEATHSIG = 1

#: Is ``python *arguments`` in a folder, with an environment; gives the status with which it ends.
Run = Callable[[list[str], str, dict[str, str]], int]


def fork_interpreters(run: Run, by_python: int = 0) -> None:
    """From now on have this process fork where it would start Python; other programs start.

    To be called before anything else happens in it: the forks begin as it is now. Does nothing
    where processes can't be forked so.

    Args:
        run: what a fork calls.
        by_python: so many are started by Python first.
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

    def fork_exec(*given: Any) -> int:
        # The arguments are those of Python's own function, in its order.
        (args, _, close_fds, pass_fds, cwd, env, stdin, _, _, stdout, _, stderr, *_) = given
        error_pipe, new_session = given[13], given[15]
        arguments = _arguments([os.fsdecode(arg) for arg in args])
        if arguments is None or not close_fds or any(map(callable, given[21:])):  # preexec_fn
            return int(start(*given))
        nonlocal by_python
        with lock:
            by_python -= 1
            if by_python >= 0:
                return int(start(*given))
        if env is None:
            variables = dict(os.environ)
        else:
            pairs = (os.fsdecode(entry).partition("=") for entry in env)
            variables = {name: value for name, _, value in pairs}
        # A pipe that tells of a program that can't be started is left out.
        passed = {number: number for number in pass_fds if number != error_pipe}
        files = {0: stdin, 1: stdout, 2: stderr, **passed}
        request = arguments, os.fsdecode(cwd or os.getcwd()), variables, list(files), new_session
        told = pickle.dumps(request)
        with lock:
            socket.send_fds(
                ours,
                [len(told).to_bytes(8, "little")],
                [number if file == -1 else file for number, file in files.items()],
            )
            ours.sendall(told)
            return int.from_bytes(_receive(ours, 8), "little")

    _posixsubprocess.fork_exec = fork_exec
    subprocess._fork_exec = fork_exec  # type: ignore[attr-defined]


def _arguments(command: list[str]) -> list[str] | None:
    """What Python is to run; None where the command is another, or has options that matter."""
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
    """Be the twin: fork as the other process asks, and end with it."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # What a terminal or killpg tells the command's group is not for this process.
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    # A pipe that the command closes has no other end here.
    os.closerange(0, requests.fileno())
    os.closerange(requests.fileno() + 1, END)
    while True:
        size, files, _, _ = socket.recv_fds(requests, 8, HIGH)
        try:
            request = pickle.loads(_receive(requests, int.from_bytes(size, "little")))
        except EOFError:
            os._exit(0)
        ctypes.pythonapi.PyOS_BeforeFork()
        # Not os.fork: the fork is to be a child of the process that asks.
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
    """Be what was asked for, with each file at its number."""
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
    """submitit writes what its process reads once that has begun: it relies on a slow start."""
    job = str(os.getpid())
    written = Path(folder.replace("%j", job)) / f"{job}_submitted.pkl"
    deadline = time.monotonic() + 60
    while not written.exists():
        assert time.monotonic() < deadline, f"{written} was not written"
        time.sleep(0.01)
