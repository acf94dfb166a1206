"""What commands leave behind: processes, shared memory, temporary files, locks."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SHARED_MEMORY = Path("/dev/shm")


class Started:
    """The processes of a command: those whose working directory is its folder.

    Not by their environment, over which Ray's workers write a name, nor by their parents, who may
    have ended.

    Args:
        folder: of this command alone.

    Attributes:
        seen: the numbers of all that were found.
    """

    def __init__(self, folder: Path) -> None:
        if not Path("/proc/self/cwd").exists():
            pytest.skip("processes are found by their folder, on Linux alone")
        self.folder = folder.resolve()
        self.seen: set[int] = set()

    def alive(self) -> dict[int, str]:
        """Command lines of those that have not ended, by their numbers."""
        commands = {}
        for process in Path("/proc").iterdir():
            if not process.name.isdigit():
                continue
            try:
                # Of a process that has ended there is neither, though its parent is yet to ask.
                if Path(os.readlink(process / "cwd")) == self.folder:
                    line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    commands[int(process.name)] = line
            except OSError:
                continue
        self.seen |= set(commands)
        return commands

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
