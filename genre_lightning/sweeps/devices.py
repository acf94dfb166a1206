"""Choosing a GPU for a job when several jobs run at once on a machine with several GPUs."""

from __future__ import annotations

import getpass
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def claim_device(names: Sequence[str], folder: Path, start: int = 0) -> Iterator[int]:
    """Claim the least used of several devices while the block runs.

    A claim is a file lock, so it is released when its process dies.

    Args:
        names: names of the devices; the same device has the same name in every process.
        folder: folder of the lock files, shared by all processes; created if needed.
        start: where in ``names`` to begin looking, e.g. the job's number.

    Yields:
        An index into ``names``.
    """
    from filelock import FileLock, Timeout  # few jobs have several GPUs to choose from

    folder.mkdir(parents=True, exist_ok=True)
    for holders in itertools.count():
        for step in range(len(names)):
            index = (start + step) % len(names)
            lock = FileLock(folder / f"{names[index]}.{holders}", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                continue
            try:
                yield index
            finally:
                lock.release()
            return


def gpu_names(count: int) -> list[str]:
    """Return the names of this process's GPUs, by CUDA_VISIBLE_DEVICES if it is set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = visible.split(",") if visible else [str(number) for number in range(count)]
    return [f"gpu-{number.strip()}" for number in numbers[:count]]


def claims_folder() -> Path:
    """Return this user's folder of claims on this machine, since sweeps share its GPUs."""
    return Path(tempfile.gettempdir()) / f"genre-lightning-{getpass.getuser()}"
