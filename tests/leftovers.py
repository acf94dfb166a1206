"""Leftovers of commands: processes, shared memory and unfinished files."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SHARED_MEMORY = Path("/dev/shm")


class CommandProcesses:
    """The processes of a command, found by their working directory.

    Their environment can't identify them, since Ray's workers overwrite it with a name, nor can
    their parents, which may have ended.

    Args:
        folder: working directory of this command, and of no other.

    Attributes:
        seen: ids of all processes found so far.
    """

    def __init__(self, folder: Path) -> None:
        if not Path("/proc/self/cwd").exists():
            pytest.skip("processes are found by their folder, which needs Linux")
        self.folder = folder.resolve()
        self.seen: set[int] = set()

    def alive(self) -> dict[int, str]:
        """Command lines of the running processes, by process id."""
        commands = {}
        for process in Path("/proc").iterdir():
            if not process.name.isdigit():
                continue
            try:
                # The cwd link of a zombie can't be read.
                if Path(os.readlink(process / "cwd")) == self.folder:
                    line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    commands[int(process.name)] = line
            except OSError:
                continue
        self.seen |= set(commands)
        return commands

    def wait_until_ended(self, seconds: float) -> None:
        """Wait until all processes have ended; fail if one still runs after this time.

        Ray's two agents are ignored: they end by themselves, after trying for a minute to report
        to Ray, which has already ended.
        """
        deadline = time.monotonic() + seconds
        while left := [command for command in self.alive().values() if "Agent" not in command]:
            assert time.monotonic() < deadline, f"still running: {left}"
            time.sleep(0.05)

    def shared_memory(self) -> list[str]:
        """Shared memory with the id of a seen process in its name, as loky's semaphores have."""
        names = os.listdir(SHARED_MEMORY) if SHARED_MEMORY.exists() else []
        return [
            name for name in names if self.seen & {int(part) for part in re.findall(r"\d+", name)}
        ]


def unfinished_files(folder: Path) -> list[Path]:
    """Temporary files in a tree that were never completed and renamed."""
    return [path for path in folder.rglob(".*") if re.fullmatch(r"\..+\.\d+", path.name)]


def wait_until(condition: Callable[[], object], seconds: float, message: Callable[[], str]) -> None:
    """Wait until a condition is true; fail with a message if it is not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, message()
        time.sleep(0.02)
