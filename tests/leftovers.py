"""What commands leave behind: processes, shared memory, temporary files, locks."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

#: An environment variable that started commands hand on to all processes of theirs.
MARK = "GENRE_LIGHTNING_TEST"
SHARED_MEMORY = Path("/dev/shm")


class Started:
    """The processes that have a mark in their environment, whoever has started them."""

    def __init__(self, mark: str) -> None:
        if not Path("/proc/self/environ").exists():
            pytest.skip("processes are found by their environment, on Linux alone")
        self.entry = f"{MARK}={mark}".encode()
        self.seen: set[int] = set()

    def alive(self) -> dict[int, str]:
        """Command lines of those that have not ended, by their numbers."""
        found = {}
        for folder in Path("/proc").iterdir():
            try:
                if not folder.name.isdigit() or self.entry not in (
                    (folder / "environ").read_bytes().split(b"\0")
                ):
                    continue
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if command:  # not a zombie's
                found[int(folder.name)] = command
        self.seen |= set(found)
        return found

    def wait_for_the_end(self, seconds: float) -> None:
        """Fail where one is still there after so long."""
        deadline = time.monotonic() + seconds
        while left := self.alive():
            assert time.monotonic() < deadline, f"still there: {left}"
            time.sleep(0.05)

    def shared_memory(self) -> list[str]:
        """What is named for one of those that were seen, as semaphores of loky are."""
        names = os.listdir(SHARED_MEMORY) if SHARED_MEMORY.exists() else []
        return [
            name for name in names if self.seen & {int(part) for part in re.findall(r"\d+", name)}
        ]


def unfinished_files(folder: Path) -> list[Path]:
    """Files of a tree that were to become others once they are whole."""
    return [path for path in folder.rglob(".*") if re.fullmatch(r"\..+\.\d+", path.name)]


def wait_until(condition: Callable[[], object], seconds: float, says: Callable[[], str]) -> None:
    """Wait for something to be true; fail with a message where it is not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, says()
        time.sleep(0.02)
