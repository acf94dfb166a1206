"""Processes that end when another one ends, and signals of a terminal."""

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
    hold_signals,
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


@pytest.mark.skipif(os.name != "posix", reason="only Linux and macOS report the end")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_process_ends_when_another_one_ends(number: int, start: Any) -> None:
    # Not a parent or child of the follower, and a zombie once it ends: nobody has waited for it.
    other = start("import time; print('here', flush=True); time.sleep(600)")
    assert other.stdout.readline() == "here\n"
    follower = start(FOLLOWER, other.pid, 600)
    assert follower.stdout.readline() == "waiting\n"
    time.sleep(0.3)
    assert follower.poll() is None
    other.send_signal(number)
    assert follower.wait(30) == 1
    assert other.wait(30) == -number


def test_process_ends_at_once_if_the_other_has_ended(start: Any) -> None:
    other = start("")
    other.wait()
    assert start(FOLLOWER, other.pid, 600).wait(30) == 1


def test_process_that_is_done_does_not_wait_for_the_other(start: Any) -> None:
    follower = start(FOLLOWER, os.getpid(), 0)
    assert follower.wait(30) == 0
    exit_when_process_ends(os.getpid())  # must return, or this process would end here


def test_nohup_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert set(ending_signals()) == {signal.SIGINT, signal.SIGTERM}
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert set(ending_signals()) == {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_the_first_sighup_is_handled() -> None:
    before = signal.getsignal(signal.SIGHUP)
    handled = []
    try:
        handlers = catch_signals([signal.SIGHUP], lambda number, frame: handled.append(number))
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
        release_signals(handlers)
        os.kill(os.getpid(), signal.SIGHUP)
        assert handled == [signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_sighup_ends_the_block() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        with pytest.raises(SystemExit) as caught, raise_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            signal.pause()
        assert caught.value.code == 128 + signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_waits_for_the_end_of_imports_but_not_the_second_one() -> None:
    before = signal.getsignal(signal.SIGINT)
    imported = []
    with pytest.raises(SystemExit) as ended, raise_on_signals(), hold_signals():
        signal.raise_signal(signal.SIGINT)
        imported.append("first")
    assert ended.value.code == 130 and imported == ["first"]
    with pytest.raises(SystemExit), hold_signals():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        imported.append("second")
    assert imported == ["first"] and signal.getsignal(signal.SIGINT) == before
