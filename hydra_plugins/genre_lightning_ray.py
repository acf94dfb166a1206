"""A Hydra launcher based on Ray; hydra-ray-launcher pins joblib and cloudpickle to old versions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict


class RayLauncher(Launcher):
    """Runs the jobs of a sweep as Ray tasks.

    Args:
        init: arguments of ``ray.init``.
        job: resources that each job requests from Ray, e.g. ``num_gpus``.
    """

    def __init__(self, init: DictConfig, job: DictConfig) -> None:
        self.init = _plain(init)
        self.job = _plain(job)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        # Imported here, since Hydra imports this module at every start.
        from genre_lightning.errors import UserError

        try:
            import ray
        except ModuleNotFoundError as error:
            if error.name != "ray":
                raise
            raise UserError(
                'hydra/launcher=ray needs Ray: pip install "genre-lightning[ray]"'
            ) from error

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        try:
            run = ray.remote(**self.job)(_run)
        except (TypeError, ValueError) as error:
            raise UserError(f"hydra.launcher.job={self.job} can't be used: {error}") from error
        try:
            ray.init(**self.init)
        except (ConnectionError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"can't use Ray with hydra.launcher.init={self.init}: {str(error).rstrip('.')}; "
                "hydra.launcher.init.address=null starts Ray on this machine, and address=auto "
                "finds one started by `ray start --head`"
            ) from error
        try:
            shared = ray.put((self.hydra_context, self.task_function, self.config))
            state = Singleton.get_state()
            return ray.get([
                run.remote(shared, state, initial_job_idx + number, list(overrides))
                for number, overrides in enumerate(job_overrides)
            ])  # fmt: skip
        finally:
            ray.shutdown()


def _plain(options: DictConfig) -> dict[str, Any]:
    return cast("dict[str, Any]", OmegaConf.to_container(options, resolve=True))


def _run(
    shared: tuple[HydraContext, TaskFunction, DictConfig],
    state: dict[Any, Any],
    number: int,
    overrides: list[str],
) -> JobReturn:
    context, task_function, config = shared
    Singleton.set_state(state)
    setup_globals()
    os.chdir(config.hydra.runtime.cwd)
    job_config = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(job_config):
        job_config.hydra.job.id = job_config.hydra.job.num = number
    return run_job(
        hydra_context=context,
        task_function=task_function,
        config=job_config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
