"""Small disks of our own, that fill up, are read-only, or have room again."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Disk:
    """A file system in memory, mounted at ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def change(self, *options: str) -> None:
        """Mount it anew: "size=..." in bytes, "ro", "rw"."""
        command = ["mount", "-o", ",".join(["remount", *options]), str(self.folder)]
        subprocess.run(command, check=True, capture_output=True)

    @property
    def used(self) -> int:
        """Bytes."""
        return shutil.disk_usage(self.folder).used


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Disk]:
    """Mount one of so many bytes; the test is skipped where that is not allowed."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no disk of our own: mounting is not allowed here")
    try:
        yield Disk(folder)
    finally:
        # Lazily: a process that is ending may still have a file open there.
        subprocess.run(["umount", "-l", str(folder)], check=True)
