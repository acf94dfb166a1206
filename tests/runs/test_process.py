"""Processes that end with another one, and signals of a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from genre_lightning.runs.process import (
    catch_signals,
    ending_signals,
    exit_when_process_ends,
    raise_on_signals,
    release_signals,
)

FOLLOWER = """
import sys, time
from genre_lightning.runs.process import exit_when_process_ends

exit_when_process_ends(int(sys.argv[1]))
print("waiting", flush=True)
time.sleep(int(sys.argv[2]))
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    processes = []

    def run(program: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.skipif(os.name != "posix", reason="the system tells on Linux and macOS")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_process_ends_with_another_one(number: int, start: Any) -> None:
    # No child of it, and it stays a zombie: nobody has asked yet how it ended.
    other = start("import time; print('here', flush=True); time.sleep(600)")
    assert other.stdout.readline() == "here\n"
    follower = start(FOLLOWER, other.pid, 600)
    assert follower.stdout.readline() == "waiting\n"
    time.sleep(0.3)
    assert follower.poll() is None
    other.send_signal(number)
    assert follower.wait(30) == 1
    assert other.wait(30) == -number


def test_one_that_is_no_more_ends_it_now(start: Any) -> None:
    other = start("")
    other.wait()
    assert start(FOLLOWER, other.pid, 600).wait(30) == 1


def test_one_that_ends_by_itself_waits_for_nobody(start: Any) -> None:
    follower = start(FOLLOWER, os.getpid(), 0)
    assert follower.wait(30) == 0
    exit_when_process_ends(os.getpid())  # or these tests would end here


def test_nohup_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert set(ending_signals()) == {signal.SIGINT, signal.SIGTERM}
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert set(ending_signals()) == {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_closed_signals_more_than_once() -> None:
    before = signal.getsignal(signal.SIGHUP)
    answered = []
    try:
        handlers = catch_signals([signal.SIGHUP], lambda number, frame: answered.append(number))
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
        release_signals(handlers)
        os.kill(os.getpid(), signal.SIGHUP)
        assert answered == [signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_hanging_up_ends_the_block() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        with pytest.raises(SystemExit) as caught, raise_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            signal.pause()
        assert caught.value.code == 128 + signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)
