"""Writing a checkpoint, whole or not at all, with an error that says what went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from genre_lightning.files import whole_file


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write what ``torch.load(weights_only=True)`` reads back.

    Args:
        content: tensors and plain data.
        path: of the file.

    Raises:
        FullDiskError: the disk is full.
        OSError: it could not be written for another reason.
    """
    import torch

    with whole_file(path, "wb") as file:
        watched = _Watched(file)
        try:
            torch.save(content, watched)  # type: ignore[arg-type]
        except RuntimeError:
            # "unexpected pos 36465024 vs 36464912": PyTorch still ends its zip after an error of
            # the system, finds that bytes are missing, and tells that alone.
            if watched.error is None:
                raise
            raise watched.error from None


class _Watched:
    """A file as ``torch.save`` writes it, with the system's first error kept."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def flush(self) -> None:
        self.file.flush()
