"""The LightningModule: the training step, the validation step, and fitting the thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import MeanMetric

from genre_lightning.checkpoint.card import (
    CHECKPOINT_FORMAT,
    CHECKPOINT_KEY,
    KNOWN_ENTRIES,
    check_card,
)
from genre_lightning.checkpoint.resuming import keep_paths_inside
from genre_lightning.checkpoint.writing import check_plain
from genre_lightning.data.batch import MovieBatch
from genre_lightning.errors import SettingError, TrainingError, UserError
from genre_lightning.inputs.input import derive_seed
from genre_lightning.models.dropout import DROPOUTS
from genre_lightning.models.fusion import ACTIVATIONS, Fusion, num_members
from genre_lightning.models.stacking import Stacking
from genre_lightning.runs.checks import RULES
from genre_lightning.scoring.metrics import LogitCollector, genre_metrics
from genre_lightning.scoring.stacking import MAX_STACKED_GENRES, fit_stacking_by_folds
from genre_lightning.scoring.thresholds import MICRO_WEIGHT, check_threshold_fit, fit_thresholds
from genre_lightning.training.lbfgs import LBFGS
from genre_lightning.training.parameter_groups import check_scales, parameter_groups
from genre_lightning.wording import counted


class DivergedError(TrainingError):
    """Training has diverged; the message says when and what to change."""


class GenreModule(pl.LightningModule):
    """Trains a network on batches of movies and fits its decision thresholds on validation.

    Its metrics are ``train/loss`` and, for each validation, ``val/`` plus every name that
    :func:`genre_lightning.scoring.metrics.genre_metrics` returns. Loggers get them from
    :class:`genre_lightning.training.callbacks.epoch_log.EpochLog`, not from Lightning.

    Args:
        network: built by :func:`genre_lightning.models.networks.build_network`.
        loss: built by :func:`genre_lightning.scoring.losses.build_loss`; maps (B, G) logits and
            (B, G) targets to a scalar, and its ``activation`` names the function to scores.
        optimizer: builds an optimizer from parameters or parameter groups.
        scheduler: builds a per-step schedule from ``(optimizer, total_steps=...)``; None for none.
        inputs: plain data about how inputs are prepared (``MovieDataModule.describe()``), stored in
            every checkpoint.
        thresholds: method of :func:`genre_lightning.scoring.thresholds.fit_thresholds`.
        micro_weight: see :func:`genre_lightning.scoring.thresholds.fit_thresholds`.
        stacking: weigh each branch's logits by genre, and let the scores of all genres correct
            each genre's, see :mod:`genre_lightning.scoring.stacking`. It is fitted for each fold on
            all other folds, so it needs validation by folds (a validation split is too small), and
            is left out without it.
        lr_scales: by branch, factor of the optimizer's learning rate; 1 for a branch that is not
            named. Weight decay has the same effect in a step as without the factor. A sparse linear
            layer fits the training titles within a few epochs, a convolutional network needs many;
            with one rate the titles are overfitted before the posters are learnt. 0 freezes a
            branch: its weights and its BatchNorm statistics do not change.
        l2: by branch, factor of the penalty of its weights if the optimizer is L-BFGS. With 1, and
            vectors of length 1, a branch is a logistic regression with
            C = 1 / ``optimizer.weight_decay``.
        num_movies: number of training movies; needed by L-BFGS.
        decay_vectors: apply weight decay to biases and BatchNorm as well.
        branch_loss: weight of the losses of each branch alone, added to the loss of the sum, so
            that no branch stops learning once the others fit the training movies. A branch's loss
            is taken over the movies that have its column.
        drop_columns: probability that a movie loses a column in a step, and with it the logits of
            every branch on that column, so that movies that lack a column are scored well, too
            (Neverova et al. 2016, "ModDrop"). No movie loses all of its columns.
        folds: number of folds of train in the batches, for validation by folds; 1 for none.
        channels_last: keep convolutions in the memory layout in which they run fastest.
        compile: compile every branch with ``torch.compile``.
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
        micro_weight: float = MICRO_WEIGHT,
        stacking: bool = False,
        lr_scales: Mapping[str, float] | None = None,
        l2: Mapping[str, float] | None = None,
        num_movies: int | None = None,
        decay_vectors: bool = False,
        branch_loss: float = 0.0,
        drop_columns: float = 0.0,
        folds: int = 1,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last) if channels_last else network
        self.loss = loss
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.inputs = dict(inputs)
        check_threshold_fit(thresholds, micro_weight)
        self.threshold_fit: dict[str, Any] = {"method": thresholds, "micro_weight": micro_weight}
        self.lr_scales = dict.fromkeys(network.branches, 1.0) | dict(lr_scales or {})
        check_scales("lr_scale", self.lr_scales, list(network.branches))
        if not any(self.lr_scales.values()):
            raise UserError("every branch has lr_scale=0, so there is nothing to train")
        self.l2 = dict.fromkeys(network.branches, 1.0) | dict(l2 or {})
        check_scales("l2", self.l2, list(network.branches))
        self.num_movies = num_movies
        self.decay_vectors = decay_vectors
        self.branch_loss = branch_loss
        self.folds = folds
        self.by_folds = folds > 1
        if self.by_folds:
            _check_members(network, folds)
        if not 0 <= drop_columns < 1:
            raise UserError(f"training.drop_columns={drop_columns} is not in [0, 1)")
        self.drop_columns = drop_columns
        if not hasattr(loss, "description"):
            raise UserError(
                f"loss: {type(loss).__name__} is not from build_loss, so no checkpoint could name "
                "it: list it in LOSSES of genre_lightning/scoring/losses.py"
            )
        self.activation = str(loss.activation)
        self.fits_stacking = stacking and self.by_folds
        _check_genre_relations(network, self.activation, self.fits_stacking)
        self.collector = LogitCollector(len(network.branches), network.num_genres)
        # Our own metric, so that a mid-epoch checkpoint can store its sums.
        self.train_loss = MeanMetric(nan_strategy="disable")
        self._train_loss_logged = False
        # Not a buffer: weight averaging would average it, but it fits the last validation's scores.
        self.thresholds = torch.full((network.num_genres,), 0.5)
        _, built_inputs = check_card(self._card())
        self.columns = {name: branch_input.column for name, branch_input in built_inputs.items()}
        if compile:
            for branch in network.branches.values():
                branch.compile()
        for name in self._frozen_branches():
            network.branches[name].requires_grad_(False)
        # Built once here, so that wrong settings are refused before training, and for its defaults.
        probe = self._make_optimizer(network.parameters())
        self.optimizer_defaults = probe.defaults
        #: Whether each step evaluates all of train several times, so nothing may be random.
        self.uses_lbfgs = isinstance(probe, LBFGS)
        # Lightning does not change the modes of modules.
        self.train()

    def _frozen_branches(self) -> list[str]:
        """Return the names of the branches that are not trained."""
        return [name for name, scale in self.lr_scales.items() if scale == 0]

    def train(self, mode: bool = True) -> GenreModule:
        """Set the mode of all branches but the frozen ones, which stay in evaluation mode.

        With L-BFGS, dropout stays off as well: each evaluation of a batch must give the same loss.
        """
        super().train(mode)
        for name in self._frozen_branches():
            self.network.branches[name].eval()
        if self.uses_lbfgs:
            for module in self.network.modules():
                if isinstance(module, DROPOUTS):
                    module.eval()
        return self

    def setup(self, stage: str) -> None:
        """Refuse a trainer with an unsupported precision."""
        requirement, is_valid = RULES["trainer.precision"]
        if not is_valid(self.trainer.precision):
            raise SettingError(f"trainer.precision={self.trainer.precision} must be {requirement}")

    def on_train_start(self) -> None:
        self._train_loss_logged = False
        if self.uses_lbfgs and self.trainer.num_training_batches > 1:
            raise UserError(
                f"optimizer=lbfgs needs all {self.num_movies} training movies in one batch: set "
                "data.batch_size=null, or take optimizer=adamw"
            )
        if self.uses_lbfgs and self.trainer.world_size > 1:
            raise UserError("optimizer=lbfgs trains in one process: set trainer.devices=1")
        if self.uses_lbfgs and self.trainer.gradient_clip_val:
            raise UserError(
                "optimizer=lbfgs finds no optimum with clipped gradients: set "
                "trainer.gradient_clip_val=null"
            )

    def on_train_epoch_start(self) -> None:
        self._train_loss_logged = False

    def training_step(self, batch: MovieBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch, and update the epoch's mean."""
        loss = self.batch_loss(batch)
        self.train_loss.update(loss.detach())  # unweighted: all batches have the same size
        if not self._train_loss_logged:
            # Once is enough: Lightning reads the metric at the epoch's end, and a call takes 1 ms.
            self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, logger=False)
            self._train_loss_logged = True
        return loss

    def batch_loss(self, batch: MovieBatch) -> Tensor:
        """Return the loss of the summed logits, plus the weighted loss of each branch alone."""
        network, targets = self.network, batch.targets
        branches = self._apply_column_dropout(network.branch_logits(batch.parts, len(batch)), batch)
        loss = self._loss(network.total(branches), targets, batch.folds)
        if self.branch_loss and len(branches) > 1:
            for name, logits in branches.items():
                rows = batch.parts[name].rows
                alone, labels, folds = network.total({name: logits}), targets, batch.folds
                if len(rows) < len(batch):
                    alone, labels, folds = alone[..., rows, :], targets[rows], folds[rows]
                if len(rows):
                    loss = loss + self.branch_loss * self._loss(alone, labels, folds)
        return loss

    def _apply_column_dropout(
        self, branches: Mapping[str, Tensor], batch: MovieBatch
    ) -> Mapping[str, Tensor]:
        """Return the branches' logits, zero where a movie loses the column in this step."""
        if not self.drop_columns or len(set(self.columns.values())) < 2:
            return branches
        names = list(dict.fromkeys(self.columns.values()))
        device = batch.targets.device
        seed = derive_seed("dropped columns", batch.seed)  # independent of augmentation
        generator = torch.Generator(device=device).manual_seed(seed)
        noise = torch.rand(len(batch), len(names), generator=generator, device=device)
        kept = noise >= self.drop_columns
        column = {name: names.index(self.columns[name]) for name in branches}
        has_column = torch.zeros_like(kept)
        for name, index in column.items():
            has_column[batch.parts[name].rows, index] = True
        # A movie that would lose all of its columns keeps them.
        kept = (kept | ~(kept & has_column).any(dim=1, keepdim=True)).float()
        return {
            name: logits * kept[:, column[name]].unsqueeze(-1) for name, logits in branches.items()
        }

    def _loss(self, logits: Tensor, targets: Tensor, folds: Tensor) -> Tensor:
        """Return the loss of (B, G) logits; of (M, B, G), the mean over the members.

        A member's loss leaves out the movies of its own fold.
        """
        if logits.ndim == 3:
            targets = targets.expand(len(logits), -1, -1)
            if self.by_folds:
                member = torch.arange(len(logits), device=logits.device)
                is_trained_on = folds != member[:, None]
                logits, targets = logits[is_trained_on], targets[is_trained_on]
            else:
                logits, targets = logits.flatten(0, 1), targets.flatten(0, 1)
        loss = self.loss(logits, targets)
        if not isinstance(loss, Tensor) or loss.ndim:
            given = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(type(loss))
            name = type(self.loss).__name__
            raise ValueError(f"a loss of class {name} gives {given}, not a tensor with one number")
        return loss

    def validation_step(self, batch: MovieBatch, batch_idx: int) -> None:
        """Collect the logits of the branches, for the metrics at the end of validation."""
        folds = batch.folds if self.by_folds else None
        branches = self.network.branch_logits(batch.parts, len(batch), folds)
        branch_logits = torch.stack(list(branches.values()), dim=1)
        self.collector.update(branch_logits, batch.targets, batch.folds)

    def on_train_epoch_end(self) -> None:
        """Stop if training has diverged."""
        self._check_finite(self.trainer.callback_metrics["train/loss"])

    def _check_finite(self, values: Tensor) -> None:
        if not bool(torch.isfinite(values).all()):
            raise DivergedError(
                f"training has diverged: the loss is not finite in epoch {self.current_epoch + 1}. "
                "Lower optimizer.lr, or clip the gradients with trainer.gradient_clip_val=1"
            )

    def on_validation_epoch_end(self) -> None:
        """Fit stacking and thresholds to the collected logits, and log every metric."""
        branch_logits, targets, folds = self.collector.collected()
        self.collector.reset()
        self._check_finite(branch_logits)
        network = self.network
        branches = dict(zip(network.branches, branch_logits.unbind(1), strict=True))
        if self.fits_stacking:
            arrays = (network.total(branches), branch_logits, targets, folds)
            numpy_arrays = (array.cpu().numpy() for array in arrays)
            fitted = fit_stacking_by_folds(*numpy_arrays, num_folds=self.folds)
            network.stacking = Stacking.from_arrays(list(branches), *fitted)
        logits = network.final_logits(branches, folds if self.by_folds else None)
        scores = ACTIVATIONS[self.activation](logits)
        self.thresholds = fit_thresholds(scores, targets, **self.threshold_fit).cpu()
        metrics = genre_metrics(scores, targets, self.thresholds.to(scores.device))
        metrics["loss"] = float(self.loss(logits, targets.float()))
        # The bookkeeping of self.log_dict takes as long as the metrics. The collector has gathered
        # the logits of all ranks, so the metrics are already the same on every rank.
        self.trainer.callback_metrics.update(
            {
                f"val/{name}": torch.tensor(value, device=self.device)
                for name, value in metrics.items()
            }
        )

    def build_optimizer(self) -> Optimizer:
        """Build the optimizer of all branches, with learning rate and decay by parameter."""
        decay_scales = None
        if self.uses_lbfgs:
            decay_scales = {name: l2 / self._num_targets() for name, l2 in self.l2.items()}
        groups = parameter_groups(
            dict(self.network.branches.items()),
            lr=self.optimizer_defaults["lr"],
            weight_decay=self.optimizer_defaults["weight_decay"],
            lr_scales=self.lr_scales,
            decay_scales=decay_scales,
            decay_vectors=self.decay_vectors,
        )
        return self._make_optimizer(groups)

    def _make_optimizer(self, parameters: Iterable[Any]) -> Optimizer:
        """Build an optimizer; raise SettingError if it refuses its arguments, or is none."""
        try:
            optimizer: Any = self.make_optimizer(parameters)
        except (TypeError, ValueError) as error:
            raise SettingError(f"optimizer: {error}") from error
        if not isinstance(optimizer, Optimizer):
            raise SettingError(
                f"optimizer: a {type(optimizer).__name__} is no optimizer of PyTorch"
            )
        return optimizer

    def configure_optimizers(self) -> Any:
        optimizer = self.build_optimizer()
        if self.make_scheduler is None:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise SettingError(
                "trainer.max_epochs=-1: the scheduler needs a known end: set trainer.max_steps"
            )
        try:
            scheduler: Any = self.make_scheduler(optimizer, total_steps=int(steps))
        except (TypeError, ValueError) as error:
            hint = (
                ". A schedule takes the optimizer and total_steps, and is stepped after each "
                "batch: put it into a function of these two, as docs/extending.md does"
            )
            reason = f"{error}{hint}" if "total_steps" in str(error) else error
            raise SettingError(f"scheduler: {reason}") from error
        if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
            raise SettingError(
                "scheduler: a schedule returns a scheduler of PyTorch that is stepped after each "
                f"batch, without a metric; this one returned a {type(scheduler).__name__}"
            )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _num_targets(self) -> int:
        """Return the number of targets that an epoch's loss averages, over all members."""
        if self.num_movies is None:
            raise ValueError("L-BFGS needs num_movies")
        members = max(num_members(branch) for branch in self.network.branches.values())
        # With folds, one member leaves out each movie.
        return self.num_movies * (members - self.by_folds) * self.network.num_genres

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the plain data that rebuilds the model, and check what all others added.

        Raises:
            TrainingError: a callback, schedule or optimizer added what can't be read again.
        """
        checkpoint[CHECKPOINT_KEY] = self._card()
        if unknown := sorted(checkpoint.keys() - KNOWN_ENTRIES):
            raise TrainingError(
                f"a checkpoint can't have the entry {unknown[0]}: a callback keeps what it needs "
                "by its state_dict and load_state_dict"
            )
        check_plain(checkpoint)  # here, since Lightning calls the module last

    def _card(self) -> dict[str, Any]:
        """Return plain data that rebuilds the model, see :mod:`genre_lightning.checkpoint.card`."""
        stacking, label_sets = self.network.stacking, self.network.label_sets
        return {
            "format": CHECKPOINT_FORMAT,
            "network": self.network.description,
            "activation": self.activation,
            "loss": self.loss.description,
            "thresholds": [float(threshold) for threshold in self.thresholds],
            "threshold_fit": self.threshold_fit,
            "stacking": None if stacking is None else stacking.to_lists(),
            "label_sets": None if label_sets is None else label_sets.to_lists(),
            **self.inputs,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what the last validation fitted, until the next one."""
        saver = self.trainer.checkpoint_callback
        if isinstance(saver, ModelCheckpoint) and saver.dirpath is not None:
            keep_paths_inside(checkpoint, Path(saver.dirpath))
        card = checkpoint[CHECKPOINT_KEY]
        self.thresholds = torch.tensor(card["thresholds"])
        self.network.stacking = Stacking.from_lists(
            card.get("stacking"), list(self.network.branches), self.network.num_genres
        )


def _check_members(network: Fusion, folds: int) -> None:
    """Refuse branches that do not have one member for each fold.

    Raises:
        UserError: naming the first such branch.
    """
    for name, branch in network.branches.items():
        if num_members(branch) != folds:
            raise UserError(
                f"data.folds={folds}: the branch {name} has "
                f"{counted(num_members(branch), 'member')}, and each fold needs one; set "
                f"model.members={folds}, list branches whose networks have members, or set "
                "data.folds=1"
            )


def _check_genre_relations(network: Fusion, activation: str, stacking: bool) -> None:
    """Refuse stacking and label sets if the loss or the number of genres does not allow them.

    Args:
        network: with its label sets, if any.
        activation: name of the loss's activation.
        stacking: whether stacking is fitted.

    Raises:
        UserError: naming the setting.
    """
    for key, enabled in (
        ("training.stacking", stacking),
        ("label_sets", network.label_sets is not None),
    ):
        if enabled and activation != "sigmoid":
            raise UserError(
                f"{key}=true needs a loss that scores each genre by itself, such as loss=bce; "
                f"set {key}=false"
            )
    if stacking and network.num_genres > MAX_STACKED_GENRES:
        raise UserError(
            f"training.stacking=true takes at most {MAX_STACKED_GENRES} genres, and the dataset "
            f"has {network.num_genres}; set training.stacking=false"
        )
