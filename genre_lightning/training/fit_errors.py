"""What a user is told where fitting fails for a reason that is not the program's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from genre_lightning.checkpoint.card import CheckpointError
from genre_lightning.errors import SettingError, TrainingError, UserError
from genre_lightning.training.callbacks.history import History


class FullMemoryError(TrainingError):
    """A batch that does not fit into memory; the message says what to change."""


@contextmanager
def fit_errors_told(
    trainer: Trainer, history: History, batch_size: int | None, ckpt_path: str | Path | None
) -> Iterator[None]:
    """Turn errors of the trainer's settings, of the checkpoint and of memory into a sentence each.

    Args:
        trainer: fits in the block.
        history: its callback; tells whether a first batch has begun.
        batch_size: movies in a batch; None for all of train.
        ckpt_path: the checkpoint that is resumed; None for none.

    Raises:
        SettingError: Lightning does not take the trainer's settings.
        CheckpointError: the checkpoint can't be restored.
        FullMemoryError: PyTorch found no room on the device or in the computer's memory.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise SettingError(f"trainer: {error}") from error
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            asked = str(error).partition("\n")[0]
            size = "null, all of train" if batch_size is None else batch_size
            raise FullMemoryError(
                f"the memory is full, training on {trainer.strategy.root_device}: lower "
                f"data.batch_size (it is {size}), or take a smaller network. PyTorch says: {asked}"
            ) from error
        if ckpt_path is None or history.started or isinstance(error, UserError):
            raise
        raise CheckpointError(f"{ckpt_path}: can't go on from it: {error}") from error
