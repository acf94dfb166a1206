"""Writing a checkpoint, whole or not at all, with an error that says what went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # "unexpected pos 36465024 vs 36464912": PyTorch still ends its zip after an error of
            # the system, or a second Ctrl-C, finds that bytes are missing, and tells that.
            if error.__context__ is None:
                raise
            raise error.__context__ from None
