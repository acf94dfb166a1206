"""What a forked command starts as ``python ...`` is forked as well, from a twin of its beginning.

joblib's workers, submitit's jobs and torchrun's processes each import PyTorch and Lightning, 3 CPU
seconds. Here they are processes like any other, children of the one that started them, with their
own files, environment and group; only the start of Python and its imports are left out.
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
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Options of Python between its name and what it runs, which a fork may do without.
IGNORED_OPTIONS = {"-u", "-s", "-E", "-B", "-I"}

#: Above every number that a started process is promised.
HIGH = 512

CLONE_PARENT, SYS_CLONE = 0x00008000, {"x86_64": 56, "aarch64": 220}.get(os.uname().machine)
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15

#: What the kernel calls the processes that fork, for tests that look for processes.
TWIN = "twin"

Run = Callable[[list[str], str, dict[str, str]], None]


def fork_interpreters(run: Run) -> None:
    """From now on have this process fork where it would start Python; other programs start.

    To be called before anything else happens in it: the forks begin as it is now.

    Args:
        run: what a fork calls, with the arguments of Python, its folder and its environment.
    """
    if sys.platform != "linux" or SYS_CLONE is None:
        return
    ours, theirs = socket.socketpair()
    # Of this process and no other: it is told of the twin's forks by the kernel, as their parent.
    if os.fork() == 0:
        ours.close()
        _serve(theirs, run)
    theirs.close()
    import _posixsubprocess

    start: Any = _posixsubprocess.fork_exec
    lock = threading.Lock()

    def fork_exec(*given: Any) -> int:
        # The arguments are those of Python's own function, in its order.
        (args, _, close_fds, pass_fds, cwd, env, stdin, _, _, stdout, _, stderr, *_) = given
        preexec = next((one for one in given[21:] if callable(one)), None)
        arguments = _arguments([os.fsdecode(arg) for arg in args])
        if arguments is None or not close_fds or preexec is not None:
            return int(start(*given))
        if env is None:
            variables = dict(os.environ)
        else:
            pairs = (os.fsdecode(entry).partition("=") for entry in env)
            variables = {name: value for name, _, value in pairs}
        # Not the pipe that ends as the program begins.
        handed = {0: stdin, 1: stdout, 2: stderr, **{fd: fd for fd in pass_fds if fd != given[13]}}
        files = [own if number == -1 else number for own, number in handed.items()]
        request = (arguments, os.fsdecode(cwd or os.getcwd()), variables, list(handed), given[15])
        told = pickle.dumps(request)
        with lock:
            socket.send_fds(ours, [len(told).to_bytes(8, "little")], files)
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
    """Fork as the other process asks, until it has ended."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(PR_SET_NAME, TWIN.encode())
    while True:
        size, files, _, _ = socket.recv_fds(requests, 8, 64)
        if not size:
            os._exit(0)
        try:
            request = pickle.loads(_receive(requests, int.from_bytes(size, "little")))
        except EOFError:
            os._exit(0)
        ctypes.pythonapi.PyOS_BeforeFork()
        # Not os.fork: the child is to be one of the process that asks.
        pid = libc.syscall(SYS_CLONE, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            ctypes.pythonapi.PyOS_AfterFork_Child()
            libc.prctl(PR_SET_NAME, b"python")
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
    high = [fcntl.fcntl(file, fcntl.F_DUPFD, HIGH) for file in files]
    os.closerange(3, HIGH)
    for file, number in zip(high, numbers, strict=True):
        os.dup2(file, number)
    os.closerange(HIGH, max(high) + 1)
    if new_session:
        os.setsid()
    status = 1
    try:
        if arguments[:2] == ["-m", "submitit.local._local"]:
            _wait_for_the_job(arguments[2])
        run(arguments, cwd, env)
        status = 0
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            status = end.code or 0
        else:
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 - printed, as Python does at its end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def show_environment(env: dict[str, str]) -> None:
    """Have the kernel show another environment, as far as that of the beginning has room for it.

    Nothing reads the old one any more: ``os.environ`` has been filled anew.
    """
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])
    entries = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in env.items())
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, entries, min(len(entries), end - start - 1))


def _wait_for_the_job(folder: str) -> None:
    """submitit writes what its process reads once that has begun: it relies on a slow start."""
    from submitit.core.utils import JobPaths

    written = JobPaths(folder, str(os.getpid()), 0).submitted_pickle
    deadline = time.monotonic() + 60
    while not written.exists():
        assert time.monotonic() < deadline, f"{written} was not written"
        time.sleep(0.01)
