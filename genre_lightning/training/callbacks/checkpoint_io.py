"""Writing checkpoints: complete files only, and in another thread where that saves time."""

from __future__ import annotations

import copy
import math
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from genre_lightning.checkpoint.card import CHECKPOINT_KEY, TRAINING_KEY
from genre_lightning.checkpoint.writing import write_checkpoint
from genre_lightning.files import temporary_name, whole_file

#: Entries that need no copy: they are made for one checkpoint alone, or never change.
_NOT_COPIED = (CHECKPOINT_KEY, TRAINING_KEY)


class WholeFileIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target and renames it once it is complete and on disk.

    Lightning moves it from the folder for temporary files, often on another file system, where a
    move is a copy and a kill leaves half a file. Lightning's ``AsyncCheckpointIO`` writes in
    another thread but removes files at once, so that for a while neither the old file nor the new
    one exists; here one thread does both, in order.

    If epochs take less than a second, writing every checkpoint would take a good part of the time.
    A checkpoint that is saved within ``min_seconds`` of the last write of its file is copied and
    held back. Only the newest one of each file is written: with the next checkpoint that is due, or
    by :meth:`finish`.

    Args:
        background: copy the state and write the copy in another thread, while training
            continues. A state that is due is copied once the one before it is on disk. An error in
            the thread is raised by the next save that is due, :meth:`teardown` at the latest, and
            the work after it is not done.
        min_seconds: between two writes of a file; 0 writes everything at once.

    Attributes:
        slim: name of the file that is written without the optimizer's state; None for no such file.
        newest: the file written last, or about to be, and its ``TRAINING_KEY`` entry.
    """

    def __init__(self, background: bool = False, min_seconds: float = 0.0) -> None:
        self.background = background
        self.min_seconds = min_seconds
        self.slim: str | None = None
        self.newest: tuple[Path, Any] | None = None
        #: When each file was written, in seconds of the monotonic clock.
        self._written: dict[Path, float] = {}
        #: Held back: the checkpoint to write to each file, or None for a file to remove.
        self._held: dict[Path, dict[str, Any] | None] = {}
        self._after: list[Callable[[], None]] = []
        self._thread: ThreadPoolExecutor | None = None
        self._futures: list[Future[None]] = []

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        entry = checkpoint.get(TRAINING_KEY)
        if path.name == self.slim:
            checkpoint = {k: value for k, value in checkpoint.items() if k != "optimizer_states"}
            entry = None  # no other file has the same content
        if self.is_due(path):
            self._held.pop(path, None)
            self._write_held()
            if self.background:
                self._wait()
                checkpoint = _snapshot(checkpoint)
            self._write(checkpoint, path)
        else:
            self._hold(path, _snapshot(checkpoint))
        self.newest = path, entry

    def is_due(self, path: Path) -> bool:
        """Whether a checkpoint that is saved now would be written, not held back."""
        elapsed = time.monotonic() - self._written.get(path, -math.inf)
        # A new file is written at once: Lightning looks up which names are taken.
        return elapsed >= self.min_seconds or not path.exists()

    def link(self, path: Path) -> None:
        """Hard-link the newest file to ``path``, or copy it if the file system has no hard links.

        Writing one of the two later doesn't change the other, since a write makes a new file.
        """
        if self.newest is None:
            raise RuntimeError("nothing was saved")
        newest = self.newest[0]
        if newest in self._held:
            self._hold(path, self._held[newest])
        else:
            self._held.pop(path, None)
            self._written[path] = time.monotonic()
            self._submit(partial(_link, newest, path))

    def remove_checkpoint(self, path: str | Path) -> None:
        if self._held:
            self._hold(Path(path), None)
        else:
            self._submit(partial(super().remove_checkpoint, path))

    def load_checkpoint(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        self.finish()
        loaded: dict[str, Any] = super().load_checkpoint(*arguments, **options)
        return loaded

    def run_when_saved(self, work: Callable[[], None]) -> None:
        """Run ``work`` once everything requested before is done.

        Work that waits for a held-back checkpoint is replaced by the work of a later one.
        """
        if self._held:
            self._after = [work]
        else:
            self._submit(work)

    def _hold(self, path: Path, checkpoint: dict[str, Any] | None) -> None:
        # Moved to the end of the order of writing, so that a file comes after those it refers to.
        self._held.pop(path, None)
        self._held[path] = checkpoint

    def _write_held(self) -> None:
        held, self._held = self._held, {}
        after, self._after = self._after, []
        written: dict[int, Path] = {}
        for path, checkpoint in held.items():
            if checkpoint is None:
                self._submit(partial(super().remove_checkpoint, path))
            elif id(checkpoint) in written:
                self._submit(partial(_link, written[id(checkpoint)], path))
            else:
                written[id(checkpoint)] = path
                self._write(checkpoint, path)
        for work in after:
            self._submit(work)

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        self._written[path] = time.monotonic()
        self._submit(partial(write_checkpoint, checkpoint, path))

    def _submit(self, work: Callable[[], None]) -> None:
        if not self.background:
            work()
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        previous = self._futures[-1] if self._futures else None
        self._futures.append(self._thread.submit(_run_after, previous, work))

    def finish(self) -> None:
        """Write what was held back, and wait until everything requested is done.

        Raises:
            FullDiskError: the disk is full.
            OSError: a file could not be written for another reason.
        """
        self._write_held()
        self._wait()

    def _wait(self) -> None:
        futures, self._futures = self._futures, []
        for future in futures:
            future.result()

    def teardown(self) -> None:
        """Finish and stop the thread; called by Lightning at the end, even after an error."""
        try:
            self.finish()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None


def _run_after(previous: Future[None] | None, work: Callable[[], None]) -> None:
    if previous is not None:
        previous.result()  # already done: the one thread works in order
    work()


def _link(source: Path, path: Path) -> None:
    temporary = temporary_name(path)
    try:
        os.link(source, temporary)
        os.replace(temporary, path)
    except OSError:  # not every file system has hard links
        with source.open("rb") as content, whole_file(path, "wb") as file:
            shutil.copyfileobj(content, file)
    finally:
        temporary.unlink(missing_ok=True)


def _snapshot(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Copy a checkpoint, so that it doesn't change while training continues."""
    return {
        key: value if key in _NOT_COPIED else _copy_to_cpu(value)
        for key, value in checkpoint.items()
    }


def _copy_to_cpu(value: Any) -> Any:
    """Copy a value, with its tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        copied = copy.copy(value)  # keeps the class and the attributes of a state_dict
        copied.update((key, _copy_to_cpu(item)) for key, item in value.items())
        return copied
    if isinstance(value, (list, tuple)):
        return type(value)([_copy_to_cpu(item) for item in value])
    return value
