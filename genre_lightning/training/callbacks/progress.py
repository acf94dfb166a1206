"""Training progress in the terminal: a line per epoch, with the loss and the score."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from torch import Tensor

from genre_lightning.training.callbacks.history import History

#: Batches between two reads of the loss, each of which waits for a GPU to finish.
READ_EVERY = 10


class Progress(RichProgressBar):
    """Lightning's bar, with the training loss, the monitored value and the best one so far.

    The line of an epoch stays after its end. The loss is that of a recent batch during an epoch,
    and the epoch's mean at its end. A notebook shows the lines alone, since a bar would need
    further packages.

    Args:
        monitor: name of the metric that selects the best checkpoint.
    """

    def __init__(self, monitor: str) -> None:
        super().__init__(refresh_rate=10, leave=True)
        self.monitor = monitor
        self.loss: float | None = None
        self.lines = Console().is_jupyter
        if self.lines:
            self.disable()

    def configure_columns(self, trainer: pl.Trainer) -> list[ProgressColumn]:
        # The bar takes what is left of a line, so that no line is wrapped in a usual terminal.
        label, batches = self._get_train_description(0), trainer.num_training_batches
        text = f"{label}  {batches}/{batches} 0:00:00 loss: 0.000 {self.monitor}: 0.000 best: 0.000"
        left = Console().width - len(text)
        return [
            TextColumn("{task.description}"),
            BarColumn(bar_width=min(10, max(3, left))),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        ]

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if batch_idx % READ_EVERY == 0 and self.is_enabled:
            loss = outputs["loss"] if isinstance(outputs, dict) else outputs
            self.loss = float(loss)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        mean = trainer.callback_metrics.get("train/loss")
        if mean is not None:
            self.loss = float(mean)
        if self.lines and trainer.is_global_zero:
            values = self.get_metrics(trainer, pl_module)
            shown = "  ".join(f"{name}: {value:.3f}" for name, value in values.items())
            print(f"{epoch_label(trainer.current_epoch, trainer.max_epochs)}  {shown}")
        super().on_train_epoch_end(trainer, pl_module)

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning's own text has a last epoch of -2 if training has no end.
        max_epochs = self.trainer.max_epochs
        last = epoch_label(max(current_epoch, (max_epochs or 0) - 1), max_epochs)
        width = max(len(last), len(self.validation_description))
        return f"{epoch_label(current_epoch, max_epochs):{width}}"

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        history = next(callback for callback in callbacks if isinstance(callback, History))
        value = trainer.callback_metrics.get(self.monitor) if history.validated else None
        values = {"loss": self.loss, self.monitor: value, "best": self._best(trainer, value)}
        return {name: float(value) for name, value in values.items() if value is not None}

    def _best(self, trainer: pl.Trainer, value: Tensor | None) -> float | Tensor | None:
        """Return the best value up to this epoch, whose own checkpoint is not saved yet."""
        saver = trainer.checkpoint_callback
        if not isinstance(saver, ModelCheckpoint) or saver.best_model_score is None:
            return value
        best = saver.best_model_score
        if value is None:
            return best
        better = max if saver.mode == "max" else min
        return better(float(best), float(value))


def epoch_label(epoch: int, max_epochs: int | None) -> str:
    """Return "Epoch 4/10", counted from 1, for Lightning's epoch 3; "Epoch 4" without an end."""
    return f"Epoch {epoch + 1}" + (f"/{max_epochs}" if max_epochs and max_epochs > 0 else "")
