"""Writing a checkpoint, completely or not at all, with an error that says what went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genre_lightning.files import whole_file


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write a file that ``torch.load(weights_only=True)`` can read.

    Args:
        content: tensors and plain data.
        path: path of the file.

    Raises:
        FullDiskError: the disk is full.
        OSError: the file could not be written for another reason.
    """
    import torch

    with whole_file(path, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # "unexpected pos 36465024 vs 36464912": after a system error or a second Ctrl-C PyTorch
            # still closes its zip, finds that bytes are missing, and reports that instead.
            if error.__context__ is None:
                raise
            raise error.__context__ from None
