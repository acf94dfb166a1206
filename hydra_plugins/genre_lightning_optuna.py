"""A Hydra sweeper based on Optuna.

hydra-optuna-sweeper requires Optuna 2, whose sqlite files fail with current SQLAlchemy; it has no
pruning, and ends the sweep at the first failed trial.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    """Runs the trials of a study as jobs of a sweep.

    Args:
        params: the search space: overrides by key with ``interval``, ``choice`` and the like.
            Overrides of the command line take precedence, see ``sweep_overrides``.
        n_trials: total number of trials of the study, including those of earlier commands.
        startup_trials: number of random trials before TPE begins.
        mode: "max" or "min", the direction in which the monitored value is better.
        seed: random seed of the sampler.
        parallel: number of trials that are chosen and launched together; -1 for one per core.
    """

    def __init__(
        self,
        params: Mapping[str, str],
        n_trials: int,
        startup_trials: int,
        mode: str,
        seed: int,
        parallel: int,
    ) -> None:
        self.n_trials = n_trials
        self.startup_trials = startup_trials
        self.mode = mode
        self.seed = seed
        self.parallel = parallel if parallel > 0 else os.cpu_count() or 1

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        # Imported here, since Hydra imports this module at every start.
        from genre_lightning.errors import UserError
        from genre_lightning.sweeps.study import study_errors

        assert self.config  # setup comes first
        try:
            with study_errors(Path(self.config.hydra.sweep.dir)):
                return self._run_trials()
        except UserError as error:
            raise SystemExit(f"error: {error}") from None

    def _run_trials(self) -> list[JobReturn]:
        from genre_lightning.runs.naming import command_name, job_folder, sweep_overrides
        from genre_lightning.runs.result import read_result
        from genre_lightning.sweeps.jobs import finished_job
        from genre_lightning.sweeps.journal import Journal, job_label
        from genre_lightning.sweeps.study import Trials, search_space

        assert self.hydra_context and self.config and self.launcher
        overrides = sweep_overrides(self.config.hydra).values()
        fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
        sweep = Path(self.config.hydra.sweep.dir)
        trials = Trials(
            sweep,
            command_name(self.config.hydra),
            search_space(overrides),
            maximize=self.mode == "max",
            startup_trials=self.startup_trials,
            seed=self.seed,
        )

        def job(trial: Any) -> list[str]:
            return [*fixed, *(f"{key}={value}" for key, value in trial.params.items())]

        def folder(trial: Any) -> Path:
            return sweep / job_folder(job(trial), str(sweep))

        load_config = self.hydra_context.config_loader.load_sweep_config
        journal = Journal(sweep)
        for trial in trials.finished():
            # The run may have been trained for longer since, by its own folder.
            result = read_result(folder(trial)) or {}
            event = {"monitor": self.config.monitor, "monitor_value": trial.value}
            if result.get("status") == "completed":
                config = load_config(self.config, job(trial))
                event = finished_job(folder(trial), result, config, job(trial))
            journal.write(
                "already finished",
                job=job_label(job(trial), sweep),
                folder=folder(trial).name,
                **event,
            )
        returns: list[JobReturn] = []
        while not journal.is_stopped(self.config.sweep.fail_fast):
            while len(trials.unfinished()) < self.parallel and trials.ask(self.n_trials):
                pass
            batch = consecutive(trials.unfinished())[: self.parallel]
            if not batch:
                break
            # Jobs have the numbers of their trials, under which they report to the study.
            returns += self.launcher.launch(
                [job(trial) for trial in batch], initial_job_idx=batch[0].number
            )
            has_ended = [trials.tell(t.number, read_result(folder(t)) or {}) for t in batch]
            if not any(has_ended):
                break
        return returns


def consecutive(trials: Sequence[Any]) -> list[Any]:
    """The leading trials whose numbers are consecutive."""
    return [
        trial for offset, trial in enumerate(trials) if trial.number == trials[0].number + offset
    ]
