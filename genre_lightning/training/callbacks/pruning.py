"""Stopping runs of a study that are worse than most others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class Pruning(Callback):
    """Reports each epoch's value to the study and ends a run that falls behind the others.

    A run ends if its best value so far is worse than the median of the values that the finished
    runs had at the same epoch (Golovin et al. 2017). A resumed run reports no epoch twice.

    Args:
        folder: the sweep's folder, which holds the study file.
        trial: number of this run's trial.
        monitor: name of the reported value.
        startup_trials: number of runs that must have finished before any is stopped.
        warmup_epochs: number of epochs in which no run is stopped.

    Attributes:
        pruned: the run has been stopped.
    """

    def __init__(
        self,
        folder: str | Path,
        trial: int,
        monitor: str,
        startup_trials: int = 5,
        warmup_epochs: int = 0,
    ) -> None:
        # Optuna is an extra, and only a run that reports needs it.
        from optuna.pruners import MedianPruner

        self.folder = Path(folder)
        self.trial = trial
        self.monitor = monitor
        self.pruner = MedianPruner(startup_trials, warmup_epochs)
        self.pruned = False

    def state_dict(self) -> dict[str, bool]:
        return {"pruned": self.pruned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pruned = bool(state_dict["pruned"])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        last = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
        prune = trainer.is_global_zero and self._should_prune(trainer) and not last
        if trainer.strategy.broadcast(prune):
            self.pruned = True
            trainer.should_stop = True

    def _should_prune(self, trainer: pl.Trainer) -> bool:
        from optuna import load_study
        from optuna.trial import Trial

        from genre_lightning.sweeps.study import NAME, storage, study_errors

        with study_errors(self.folder):
            study = load_study(study_name=NAME, storage=storage(self.folder), pruner=self.pruner)
            known = study.get_trials(deepcopy=False)[self.trial]
            trial = Trial(study, known._trial_id)
            if trainer.current_epoch not in known.intermediate_values:
                value = float(trainer.callback_metrics[self.monitor])
                trial.report(value, trainer.current_epoch)
            return trial.should_prune()
