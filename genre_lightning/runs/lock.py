"""The lock of a run folder, held while a process trains in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genre_lightning.errors import UserError

LOCK = ".lock"


class FolderInUseError(UserError):
    """Another process is training in a run folder, or has just finished doing so."""


def is_running(folder: str | Path) -> bool:
    """Whether a process is running in this run folder.

    False for a folder without write permission.
    """
    path = Path(folder) / LOCK
    if not path.exists():
        return False
    from filelock import FileLock, Timeout  # not needed for --help and --cfg

    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder while the block runs.

    Raises:
        FolderInUseError: another process holds it.
    """
    from filelock import FileLock, Timeout

    # Not 0, since is_running briefly acquires the lock.
    lock = FileLock(folder / LOCK, timeout=2)
    try:
        lock.acquire()
    except Timeout:
        raise FolderInUseError(
            f"another process is running in {folder}: wait for it or stop it, or name another "
            "folder with hydra.run.dir"
        ) from None
    try:
        yield
    finally:
        lock.release()
