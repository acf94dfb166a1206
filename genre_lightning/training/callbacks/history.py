"""metrics.csv: a row for each epoch and each mid-epoch validation, kept when a run is resumed."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn

from genre_lightning.data.batch import MovieBatch
from genre_lightning.files import whole_file


class History(Callback):
    """Writes ``metrics.csv`` and measures how fast training runs.

    Lightning's own CSV logger deletes an existing file, so a resumed run would lose its first
    epochs. This callback keeps the rows before the epoch it resumes with, and replaces the file in
    one step, so that a kill leaves either the old rows or the new ones. Each checkpoint contains
    the rows, so that a run resumed in another folder keeps them, and rows of an epoch that is run
    again are dropped.

    A mid-epoch validation has its own row, without ``seconds`` and without values that are only
    known at the epoch's end; a validation after the last batch is part of the epoch's row.

    Args:
        folder: the run folder.

    Attributes:
        started: the first batch has begun, so any checkpoint has been restored.
        validated: there was a validation in the current epoch, or in the one that has just ended.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "metrics.csv"
        self.rows: list[dict[str, Any]] = []
        self.samples = 0
        self.seconds = 0.0
        self.started = False
        self.validated = False
        self._unwritten = False  # no row has the last validation yet
        self._epoch_began = 0.0
        self._last_batch_end = 0.0
        self._earlier_seconds = 0.0

    @property
    def samples_per_second(self) -> float | None:
        """Training movies per second, without validation; None before the first batch."""
        return self.samples / self.seconds if self.seconds > 0 else None

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "samples": self.samples,
            "seconds": self.seconds,
            "epoch_seconds": self._elapsed(),
            "validated": self.validated,
            "unwritten": self._unwritten,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state_dict["rows"]]
        self.samples = state_dict["samples"]
        self.seconds = state_dict["seconds"]
        self._earlier_seconds = state_dict["epoch_seconds"]
        self.validated = state_dict.get("validated", False)
        self._unwritten = state_dict.get("unwritten", self.validated)

    def _elapsed(self) -> float:
        """Return the seconds of the current epoch, 0 between epochs."""
        now = time.perf_counter()
        return self._earlier_seconds + (now - self._epoch_began if self._epoch_began else 0.0)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.rows and trainer.is_global_zero:
            self._write()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch_began = self._last_batch_end = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch_began = self._last_batch_end = time.perf_counter()
        self._earlier_seconds = 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: MovieBatch, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self.validated = self._unwritten = False
        self.started = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validated = self._unwritten = not trainer.sanity_checking
        if trainer.state.fn == TrainerFn.FITTING and self.validated and not trainer.is_last_batch:
            self._add_row(trainer, None)
        self._last_batch_end = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: MovieBatch,
        batch_idx: int,
    ) -> None:
        now = time.perf_counter()
        self.samples += len(batch) * trainer.world_size
        self.seconds += now - self._last_batch_end
        self._last_batch_end = now

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        seconds = self._elapsed()
        self._epoch_began = self._earlier_seconds = 0.0
        self._add_row(trainer, seconds)

    def _add_row(self, trainer: pl.Trainer, seconds: float | None) -> None:
        """Add the row of an epoch that took ``seconds``, or of a mid-epoch validation if None."""
        # callback_metrics still holds the values of the last validation and the last epoch.
        values = {
            name: float(value)
            for name, value in sorted(trainer.callback_metrics.items())
            if (self._unwritten if name.startswith("val/") else seconds is not None)
        }
        rates = [
            group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups
        ]
        self._unwritten = False
        self.rows.append(
            {
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
                "seconds": "" if seconds is None else round(seconds, 3),
                "lr": float(max(rates)),
                **values,
            }
        )
        if trainer.is_global_zero:
            self._write()

    def _write(self) -> None:
        # The fullest row is that of an epoch, and sets the order of the columns.
        fullest_first = sorted(self.rows, key=len, reverse=True)
        columns = list(dict.fromkeys(name for row in fullest_first for name in row))
        with whole_file(self.path) as file:
            writer = csv.DictWriter(file, fieldnames=columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
