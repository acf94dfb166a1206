"""Hides messages and warnings of libraries that are of no use when training a model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

#: Beginnings of Lightning's messages to hide: available hardware, advertising, and facts that our
#: own output contains. Other messages, such as those about Slurm's signals, are kept.
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
#: Beginnings of warnings to hide, as regular expressions.
WARNINGS = (
    # Lightning uses a deprecated function of PyTorch.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # Frozen branches and encoders are in eval mode on purpose.
    r"Found \d+ module\(s\) in eval mode at the start of training",
    # Expected when a run is resumed in its folder.
    r"Checkpoint directory .* exists and is not empty",
    # What stopped a run is left out to train on; other callbacks are compared as settings.
    r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
    # Not relevant, since epochs are logged instead of steps.
    r"The number of training batches \(\d+\) is smaller than the logging interval",
)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide these messages and warnings while the block runs."""
    logger = logging.getLogger(LIGHTNING_LOGGER)
    logger.addFilter(_should_show)
    try:
        with warnings.catch_warnings():
            for message in WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        logger.removeFilter(_should_show)


def _should_show(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(LIGHTNING_NOTES)
