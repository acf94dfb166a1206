"""Hands every logger the rows of metrics.csv, each of them once, also over a resume."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from genre_lightning.callbacks.history import History

#: The x-axis of every chart in W&B, as Lightning calls it. W&B's own step can't be: it counts on
#: over everything logged, and a run that is synced from two folders has its second half shifted.
WANDB_STEP = "trainer/global_step"


class EpochLog(Callback):
    """Logs each epoch's row of ``metrics.csv``, one row and one moment for all loggers.

    Lightning logs the metrics of an epoch in two parts, the second of them after the checkpoint
    is written, so that a kill in between leaves a hole. A row here is logged before that; one that
    a logger has lost in a kill is given to it again.

    Args:
        history: what writes ``metrics.csv``; it comes before this callback.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self.logged: dict[int, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        for number, logger in enumerate(trainer.loggers):
            self.logged[number] = _logged_until(logger, self.history)
            for row in self.history.rows:
                self._log(number, logger, row)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        for number, logger in enumerate(trainer.loggers):
            self._log(number, logger, self.history.rows[-1])

    def _log(self, number: int, logger: Logger, row: Mapping[str, Any]) -> None:
        values = {name: float(value) for name, value in row.items() if value not in ("", None)}
        step = int(values.pop("step"))
        if step <= self.logged[number]:
            return
        logger.log_metrics(values, step=step)
        logger.save()


def _logged_until(logger: Logger, history: History) -> float:
    """The step of the last row that the logger has from an earlier attempt at this run."""
    if isinstance(logger, CSVLogger):
        return -math.inf  # it begins its file anew
    if isinstance(logger, WandbLogger) and logger.experiment.resumed:
        return float(logger.experiment.summary.get(WANDB_STEP, -math.inf))
    return float(history.rows[-1]["step"]) if history.rows else -math.inf
