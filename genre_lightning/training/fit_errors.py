"""Clear messages for errors in fitting that are not bugs of the program."""

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
def clear_fit_errors(
    trainer: Trainer, history: History, batch_size: int | None, ckpt_path: str | Path | None
) -> Iterator[None]:
    """Turn errors of the trainer's settings, the checkpoint and memory into clear messages.

    Args:
        trainer: fits within the ``with`` block.
        history: the trainer's callback, which knows whether the first batch has begun.
        batch_size: movies in a batch; None for all of train.
        ckpt_path: the checkpoint to resume from; None for none.

    Raises:
        SettingError: Lightning refuses the trainer's settings.
        CheckpointError: the checkpoint can't be restored.
        FullMemoryError: the device or the computer ran out of memory.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise SettingError(f"trainer: {error}") from error
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            first_line = str(error).partition("\n")[0]
            size = "null, all of train" if batch_size is None else batch_size
            raise FullMemoryError(
                f"the memory is full, training on {trainer.strategy.root_device}: lower "
                f"data.batch_size (it is {size}), or take a smaller network. PyTorch says: "
                f"{first_line}"
            ) from error
        if "`val_check_interval`" in str(error):
            raise SettingError(
                f"trainer.val_check_interval={trainer.val_check_interval} is more than the "
                f"{trainer.num_training_batches} batches of an epoch: lower it, or count over all "
                "epochs with trainer.check_val_every_n_epoch=null"
            ) from error
        if ckpt_path is None or history.started or isinstance(error, UserError):
            raise
        raise CheckpointError(f"{ckpt_path}: can't resume from it: {error}") from error
