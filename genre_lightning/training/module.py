"""The LightningModule: one training step, one validation step, and the thresholds between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, SumMetric

from genre_lightning.checkpoint.model import (
    CHECKPOINT_FORMAT,
    CHECKPOINT_KEY,
    check_card,
    keep_paths_inside,
)
from genre_lightning.data.batch import MovieBatch
from genre_lightning.errors import UserError
from genre_lightning.inputs.terms import state_to_json
from genre_lightning.models import ACTIVATIONS, Fusion
from genre_lightning.scoring.metrics import ScoreCollector, genre_metrics
from genre_lightning.scoring.thresholds import fit_thresholds


class DivergedError(UserError):
    """Training that went to infinity; the message says when and what to change."""


class GenreModule(pl.LightningModule):
    """Trains a network on batches of movies and fits its decision thresholds on validation.

    Its metrics are ``train/loss`` and, for each validation epoch, ``val/`` and every name that
    :func:`genre_lightning.scoring.metrics.genre_metrics` gives. Loggers get them from
    :class:`genre_lightning.training.callbacks.epoch_log.EpochLog`, not from Lightning.

    Args:
        network: built by :func:`genre_lightning.models.build_network`.
        loss: built by :func:`genre_lightning.scoring.losses.build_loss`; maps (B, G) logits and
            (B, G) targets to a scalar, and its ``activation`` names the scores it trains.
        optimizer: makes an optimizer of parameters or of groups of them.
        scheduler: makes a per-step schedule of ``(optimizer, total_steps=...)``; None for none.
        inputs: plain data about how inputs are prepared (``MovieDataModule.describe()``), stored in
            every checkpoint.
        thresholds: method of :func:`genre_lightning.scoring.thresholds.fit_thresholds`.
        title_lr_scale: learning rate of the title branch over that of the poster branch. A sparse
            linear layer fits the training titles within a few epochs, a convolutional network
            needs many; at one rate the title branch is overfitted before the poster branch is
            trained. What weight decay takes off in a step stays the same.
        decay_vectors: apply weight decay to biases and BatchNorm as well.
        branch_loss: weight of the losses of each branch alone, added to the loss of the sum, so
            that neither branch stops learning once the other fits the training movies. The
            poster's is taken over the movies that have one.
        channels_last: keep convolutions in the memory layout in which they run fastest.
        compile: compile both branches with ``torch.compile``.
    """

    def __init__(
        self,
        network: Fusion,
        loss: nn.Module,
        optimizer: Callable[[Iterable[Any]], Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        *,
        inputs: Mapping[str, Any],
        thresholds: str = "expected",
        title_lr_scale: float = 1.0,
        decay_vectors: bool = False,
        branch_loss: float = 0.0,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last) if channels_last else network
        self.loss = loss
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.inputs = dict(inputs)
        self.threshold_method = thresholds
        self.title_lr_scale = title_lr_scale
        self.decay_vectors = decay_vectors
        self.branch_loss = branch_loss
        self.activation = str(loss.activation)
        self.collector = ScoreCollector(network.num_genres)
        # A metric of our own, whose sums a checkpoint in mid-epoch can take along.
        self.train_loss = MeanMetric(nan_strategy="disable")
        self._train_loss_logged = False
        # Lightning's mean, and that of torchmetrics without its checks, are wrong where processes
        # have different numbers of movies.
        self.val_loss = SumMetric(nan_strategy="disable")
        # Not a buffer: weight averaging would average it, and it belongs to the scores just seen.
        self.thresholds = torch.full((network.num_genres,), 0.5)
        check_card(self._card())
        if compile:
            for branch in (network.title, network.poster):
                if branch is not None:
                    branch.compile()

    def on_train_start(self) -> None:
        self._train_loss_logged = False

    def on_train_epoch_start(self) -> None:
        self._train_loss_logged = False

    def training_step(self, batch: MovieBatch, batch_idx: int) -> Tensor:
        """The loss of the summed logits, and of each branch where ``branch_loss`` asks for it."""
        title, poster = self.network.branch_logits(**batch.inputs())
        prior = self.network.prior
        loss: Tensor = self.loss(prior + title + poster, batch.targets)
        if self.branch_loss and self.network.title is not None and self.network.poster is not None:
            loss = loss + self.branch_loss * self.loss(prior + title, batch.targets)
            if len(batch.poster_rows):
                seen = batch.poster_rows
                alone = self.loss((prior + poster)[seen], batch.targets[seen])
                loss = loss + self.branch_loss * alone
        self.train_loss.update(loss.detach())  # all batches are of one size
        if not self._train_loss_logged:
            # Once: at the epoch's end Lightning asks the metric, and each call takes a millisecond.
            self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, logger=False)
            self._train_loss_logged = True
        return loss

    def validation_step(self, batch: MovieBatch, batch_idx: int) -> None:
        """Collect the scores; nothing is computed of them before the epoch's end."""
        logits = self.network(**batch.inputs())
        self.val_loss.update(self.loss(logits, batch.targets) * len(batch))
        self.collector.update(ACTIVATIONS[self.activation](logits.float()), batch.targets)

    def on_train_epoch_end(self) -> None:
        """Stop a training that has diverged."""
        self._check_finite(self.trainer.callback_metrics["train/loss"])

    def _check_finite(self, values: Tensor) -> None:
        if not bool(torch.isfinite(values).all()):
            raise DivergedError(
                f"training has diverged: the loss is not finite at epoch {self.current_epoch}. "
                "Lower optimizer.lr, or bound the steps by trainer.gradient_clip_val=1"
            )

    def on_validation_epoch_end(self) -> None:
        """Fit the thresholds to the collected scores and log every metric."""
        scores, targets = self.collector.compute()
        self.collector.reset()
        self._check_finite(scores)
        self.thresholds = fit_thresholds(scores, targets, method=self.threshold_method).cpu()
        metrics = genre_metrics(scores, targets, self.thresholds.to(scores.device))
        # The same numbers on every rank already, since the collector has gathered them; Lightning
        # wants them reduced, and the largest of equal numbers is that number to the last bit.
        metrics["loss"] = float(self.val_loss.compute()) / len(targets)
        self.val_loss.reset()
        values = {f"val/{name}": value for name, value in metrics.items()}
        self.log_dict(values, sync_dist=True, reduce_fx="max", logger=False)

    def configure_optimizers(self) -> Any:
        defaults = self.make_optimizer(self.network.parameters()).defaults
        optimizer = self.make_optimizer(self._parameter_groups(defaults))
        if self.make_scheduler is None:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = self.make_scheduler(optimizer, total_steps=steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _parameter_groups(self, defaults: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Each branch's matrices and vectors, with their share of the optimizer's own settings."""
        groups = []
        for branch, scale in (
            (self.network.title, self.title_lr_scale),
            (self.network.poster, 1.0),
        ):
            if branch is None:
                continue
            for vectors in (False, True):
                chosen = [p for p in branch.parameters() if (p.ndim <= 1) == vectors]
                decay = 0.0 if vectors and not self.decay_vectors else defaults["weight_decay"]
                groups.append(
                    {
                        "params": chosen,
                        "lr": defaults["lr"] * scale,
                        "weight_decay": decay / scale,
                    }
                )
        return groups

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the model, as plain data."""
        checkpoint[CHECKPOINT_KEY] = {**self._card(), "titles": self._titles}

    @cached_property
    def _titles(self) -> str:
        """The title features as a file has them."""
        return state_to_json(self.inputs["titles"])

    def _card(self) -> dict[str, Any]:
        return {
            "format": CHECKPOINT_FORMAT,
            "network": self.network.description,
            "activation": self.activation,
            "loss": self.loss.description,
            "thresholds": [float(threshold) for threshold in self.thresholds],
            **self.inputs,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the thresholds of the checkpoint until the next validation."""
        saver = self.trainer.checkpoint_callback
        if isinstance(saver, ModelCheckpoint) and saver.dirpath is not None:
            keep_paths_inside(checkpoint, Path(saver.dirpath))
        self.thresholds = torch.tensor(checkpoint[CHECKPOINT_KEY]["thresholds"])
