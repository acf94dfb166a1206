"""What commands leave behind: processes, shared memory, temporary files, locks."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forked_interpreters import TWIN
from tests.forking import SHOWN

#: An environment variable that started commands hand on to all processes of theirs.
MARK = SHOWN
SHARED_MEMORY = Path("/dev/shm")


class Started:
    """The processes of a command: those with a mark in their environment, and their children.

    The mark alone is not enough, since Ray's workers write a name over their environment.

    Attributes:
        seen: all that were found, by number and the time at which they began.
    """

    def __init__(self, mark: str) -> None:
        if not Path("/proc/self/environ").exists():
            pytest.skip("processes are found by their environment, on Linux alone")
        self.entry = f"{MARK}={mark}".encode()
        self.seen: set[tuple[int, str]] = set()

    def alive(self) -> dict[int, str]:
        """Command lines of those that have not ended, by their numbers."""
        commands, parents = {}, {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                state, parent, *rest = _stat(folder)
                key = int(folder.name), rest[17]
                if state != "Z" and (folder / "comm").read_text() != f"{TWIN}\n":
                    commands[key] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    parents[key] = int(parent)
                    if self.entry in (folder / "environ").read_bytes().split(b"\0"):
                        self.seen.add(key)
            except OSError:
                continue
        while True:
            numbers = {number for number, _ in self.seen & set(commands)}
            children = {key for key, parent in parents.items() if parent in numbers} - self.seen
            if not children:
                break
            self.seen |= children
        return {key[0]: commands[key] for key in self.seen & set(commands)}

    def wait_for_the_end(self, seconds: float) -> None:
        """Fail where one is still there after so long.

        Ray's two agents are not waited for: they end by themselves, after they have tried for a
        minute to tell Ray of it, which is no more.
        """
        deadline = time.monotonic() + seconds
        while left := [command for command in self.alive().values() if "Agent" not in command]:
            assert time.monotonic() < deadline, f"still there: {left}"
            time.sleep(0.05)

    def shared_memory(self) -> list[str]:
        """What is named for one of those that were seen, as semaphores of loky are."""
        names = os.listdir(SHARED_MEMORY) if SHARED_MEMORY.exists() else []
        numbers = {number for number, _ in self.seen}
        return [
            name for name in names if numbers & {int(part) for part in re.findall(r"\d+", name)}
        ]


def _stat(folder: Path) -> list[str]:
    """State, parent and the rest of what the kernel says of a process."""
    return (folder / "stat").read_text().rpartition(")")[2].split()


def unfinished_files(folder: Path) -> list[Path]:
    """Files of a tree that were to become others once they are whole."""
    return [path for path in folder.rglob(".*") if re.fullmatch(r"\..+\.\d+", path.name)]


def wait_until(condition: Callable[[], object], seconds: float, says: Callable[[], str]) -> None:
    """Wait for something to be true; fail with a message where it is not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, says()
        time.sleep(0.02)
