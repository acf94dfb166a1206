"""Hides notes and warnings of libraries that tell nothing new to who trains a model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

#: How Lightning's notes begin that are left out: what it found on every machine, what it
#: advertises, and what our own lines tell. Its other notes, those of Slurm's signals say, are kept.
LIGHTNING_NOTES = (
    "GPU available: ",
    "TPU available: ",
    "💡 Tip: ",
    "Loading `train_dataloader` to estimate",
    "`Trainer.fit` stopped: ",
    "Restoring states from the checkpoint path",
    "Restored all states from the checkpoint",
)
LIGHTNING_LOGGER = "pytorch_lightning.utilities.rank_zero"
#: How warnings begin that are left out, as regular expressions.
WARNINGS = (
    # Lightning calls PyTorch in a way that a later one will not have.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # Frozen branches and encoders are meant to be so.
    r"Found \d+ module\(s\) in eval mode at the start of training",
    # A run is resumed in its folder.
    r"Checkpoint directory .* exists and is not empty",
    # Epochs are logged, not steps.
    r"The number of training batches \(\d+\) is smaller than the logging interval",
)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Leave these notes and warnings out while the block runs."""
    logger = logging.getLogger(LIGHTNING_LOGGER)
    logger.addFilter(_is_news)
    try:
        with warnings.catch_warnings():
            for message in WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        logger.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(LIGHTNING_NOTES)
