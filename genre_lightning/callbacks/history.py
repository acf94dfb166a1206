"""metrics.csv: one row for each epoch, in the run folder, kept whole over a resume."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from genre_lightning.data.batch import MovieBatch
from genre_lightning.run_folder import whole_file


class History(Callback):
    """Writes ``metrics.csv`` and measures how fast training runs.

    Lightning's own CSV logger deletes the file it finds, so a resumed run would lose its first
    epochs. This one keeps the rows before the epoch it goes on with, and replaces the file in one
    step, so that a kill leaves the old rows or the new ones.

    Args:
        folder: the run folder.

    Attributes:
        started: a first epoch is about to begin; what was to be restored is.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "metrics.csv"
        self.rows: list[dict[str, Any]] = []
        self.samples = 0
        self.seconds = 0.0
        self.started = False
        self._epoch_began = 0.0

    @property
    def samples_per_second(self) -> float | None:
        """Training movies per second, validation left out; None before an epoch."""
        return self.samples / self.seconds if self.seconds > 0 else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = True
        if trainer.ckpt_path is not None and self.path.exists():
            with self.path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            self.rows = [row for row in rows if int(row["epoch"]) < trainer.current_epoch]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch_began = time.perf_counter()
        self._batches_ended = self._epoch_began

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: MovieBatch,
        batch_idx: int,
    ) -> None:
        self.samples += len(batch) * trainer.world_size
        self._batches_ended = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds += self._batches_ended - self._epoch_began
        if not trainer.is_global_zero:
            return
        values = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        rates = [
            group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups
        ]
        self.rows.append(
            {
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
                "seconds": round(time.perf_counter() - self._epoch_began, 3),
                "lr": max(rates),
                **values,
            }
        )
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with whole_file(self.path) as file:
            writer = csv.DictWriter(file, fieldnames=columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
