"""Logging the rows of metrics.csv to every logger, each row once, even if a run is resumed."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from genre_lightning.training.callbacks.history import History

#: The x-axis of every chart in W&B, under Lightning's name. W&B's own step is unsuitable: it counts
#: everything logged, which shifts the second half of a run that is synced from two folders.
WANDB_STEP = "trainer/global_step"


class EpochLog(Callback):
    """Logs each row of ``metrics.csv`` to all loggers at once.

    Lightning logs the metrics of an epoch in two parts, the second one after the checkpoint is
    written, so that a kill in between leaves a gap. Here a row is logged before the checkpoint is
    written. When a run is resumed, each logger gets only the rows that it doesn't have yet.

    Args:
        history: writes ``metrics.csv``, and comes before this callback.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self.stored_steps: list[int] = []
        self.last_logged: list[float] = []
        self._num_logged = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # Before History drops the rows of epochs that will be run again.
        if self.history.path.exists():
            with self.history.path.open(newline="") as file:
                self.stored_steps = [int(row["step"]) for row in csv.DictReader(file)]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        last_kept = int(self.history.rows[-1]["step"]) if self.history.rows else -1
        if self.stored_steps and self.stored_steps[-1] > last_kept:
            self.stored_steps.pop()  # a kill may have come between writing and logging it
        last_stored = self.stored_steps[-1] if self.stored_steps else -1
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logged = -1.0  # it starts a new file
            elif not isinstance(logger, WandbLogger):
                logged = last_stored
            elif logger.experiment.resumed:
                logged = float(logger.experiment.summary.get(WANDB_STEP, -1))
            else:  # offline, or a server that does not say
                logged = max(last_stored, last_kept) if getattr(logger, "resumes", True) else -1
            self.last_logged.append(logged)
        self._num_logged = 0
        self._log_new(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and self.history.started:
            self._log_new(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._log_new(trainer)

    def _log_new(self, trainer: pl.Trainer) -> None:
        for row in self.history.rows[self._num_logged :]:
            self._log(trainer.loggers, row)
        self._num_logged = len(self.history.rows)

    def _log(self, loggers: Sequence[Logger], row: Mapping[str, Any]) -> None:
        values = {name: float(value) for name, value in row.items() if value not in ("", None)}
        step = int(values.pop("step"))
        for logger, logged in zip(loggers, self.last_logged, strict=True):
            if step > logged:
                logger.log_metrics(values, step=step)
                logger.save()
