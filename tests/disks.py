"""Small disks in memory, for tests of a full or read-only disk."""

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
        """Remount the disk with options such as "size=..." in bytes, "ro" or "rw"."""
        command = ["mount", "-o", ",".join(["remount", *options]), str(self.folder)]
        subprocess.run(command, check=True, capture_output=True)

    @property
    def used(self) -> int:
        """Used bytes."""
        return shutil.disk_usage(self.folder).used


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Disk]:
    """Mount a disk of ``size`` bytes; skip the test where mounting is not allowed."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no small disk: mounting is not allowed here")
    try:
        yield Disk(folder)
    finally:
        # Lazily, since an ending process may still have a file open there.
        subprocess.run(["umount", "-l", str(folder)], check=True)
