"""Hands every logger the rows of metrics.csv, each of them once, also over a resume."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from genre_lightning.training.callbacks.history import History

#: The x-axis of every chart in W&B, as Lightning calls it. W&B's own step can't be: it counts on
#: over everything logged, and a run that is synced from two folders has its second half shifted.
WANDB_STEP = "trainer/global_step"


class EpochLog(Callback):
    """Logs each row of ``metrics.csv``, one row and one moment for all loggers.

    Lightning logs the metrics of an epoch in two parts, the second of them after the checkpoint is
    written, so that a kill in between leaves a hole. Here a row is logged before that. Where a run
    is resumed, a logger gets what it does not have yet of the rows before and of those run again.

    Args:
        history: what writes ``metrics.csv``; it comes before this callback.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self.found: list[int] = []
        self.logged: list[float] = []
        self._seen = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # Before History takes away the rows of epochs that are to be run again.
        if self.history.path.exists():
            with self.history.path.open(newline="") as file:
                self.found = [int(row["step"]) for row in csv.DictReader(file)]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        kept = int(self.history.rows[-1]["step"]) if self.history.rows else -1
        if self.found and self.found[-1] > kept:
            self.found.pop()  # the process may have ended between writing it and logging it
        here = self.found[-1] if self.found else -1
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logged = -1.0  # it begins its file anew
            elif not isinstance(logger, WandbLogger):
                logged = here
            elif logger.experiment.resumed:
                logged = float(logger.experiment.summary.get(WANDB_STEP, -1))
            else:  # offline, or a server that does not say
                logged = max(here, kept) if getattr(logger, "resumes", True) else -1
            self.logged.append(logged)
        self._seen = 0
        self._log_new(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and self.history.started:
            self._log_new(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._log_new(trainer)

    def _log_new(self, trainer: pl.Trainer) -> None:
        for row in self.history.rows[self._seen :]:
            self._log(trainer.loggers, row)
        self._seen = len(self.history.rows)

    def _log(self, loggers: Sequence[Logger], row: Mapping[str, Any]) -> None:
        values = {name: float(value) for name, value in row.items() if value not in ("", None)}
        step = int(values.pop("step"))
        for logger, logged in zip(loggers, self.logged, strict=True):
            if step > logged:
                logger.log_metrics(values, step=step)
                logger.save()
