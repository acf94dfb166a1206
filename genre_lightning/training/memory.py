"""What a user is told where a training needs more memory than there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from genre_lightning.errors import TrainingError


class FullMemoryError(TrainingError):
    """A batch that does not fit into memory; the message says what to change."""


@contextmanager
def full_memory_told(device: torch.device, batch_size: int | None) -> Iterator[None]:
    """Turn an allocation that fails into an error of one sentence.

    Args:
        device: on which the block trains.
        batch_size: movies in a batch; None for all of train.

    Raises:
        FullMemoryError: PyTorch found no room on the device or in the computer's memory.
    """
    try:
        yield
    except RuntimeError as error:
        full = isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
        if not full:
            raise
        asked = str(error).partition("\n")[0]
        size = "null, all of train" if batch_size is None else batch_size
        raise FullMemoryError(
            f"the memory is full, training on {device}: lower data.batch_size (it is {size}), or "
            f"take a smaller network. PyTorch says: {asked}"
        ) from error
