"""Checkpoints without what only training needs: a third of the size, or less."""

from __future__ import annotations

from pathlib import Path

from genre_lightning.checkpoint.card import CHECKPOINT_KEY, read_checkpoint
from genre_lightning.checkpoint.writing import write_checkpoint
from genre_lightning.errors import UserError

#: Entries to keep: the weights, the model's description, and the epoch and step of training.
KEPT_KEYS = (CHECKPOINT_KEY, "state_dict", "epoch", "global_step", "pytorch-lightning_version")


class WeightsError(UserError):
    """A file that can't be written; the message names it."""


def export_weights(source: Path, path: Path) -> None:
    """Write a copy of a checkpoint for prediction and evaluation; training can't resume from it.

    Args:
        source: the checkpoint.
        path: file to write, different from ``source``; written completely or not at all.

    Raises:
        CheckpointError: ``source`` is not a checkpoint of this project.
        WeightsError: ``path`` can't be written, is ``source``, or does not end in .ckpt.
    """
    if path.exists() and source.exists() and path.samefile(source):
        raise WeightsError(f"{path} is the checkpoint itself; name another file")
    if path.suffix != ".ckpt":
        raise WeightsError(f"{path}: the name must end in .ckpt")
    checkpoint = read_checkpoint(source, mmap=True)
    slim = {name: checkpoint[name] for name in KEPT_KEYS if name in checkpoint}
    # Cloned, because saving a view would save its whole storage.
    slim["state_dict"] = {name: value.clone() for name, value in slim["state_dict"].items()}
    try:
        write_checkpoint(slim, path)
    except OSError as error:
        raise WeightsError(f"{path}: can't be written ({error.strerror or error})") from error
