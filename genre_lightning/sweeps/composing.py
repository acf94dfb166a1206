"""The configurations of a sweep's jobs, each composed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from omegaconf import DictConfig

#: Configurations that are kept between the two times that Hydra asks for them, of about 1 MB each.
MOST_KEPT = 64


def compose_each_job_once() -> Callable[[], None]:
    """Have Hydra keep the configuration of a job that it has composed to check it.

    Before any job starts Hydra composes all of them, so that an override which can't be used is
    told at once, and then each again to run it. That takes .15 s each time, as long as an epoch
    over embeddings.

    Returns:
        What undoes it, at the end of the sweep.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    compose = ConfigLoaderImpl.load_sweep_config
    kept: dict[tuple[int, tuple[str, ...]], DictConfig] = {}

    def load_sweep_config(
        self: Any, master_config: DictConfig, sweep_overrides: Sequence[str]
    ) -> DictConfig:
        key = (id(master_config), tuple(sweep_overrides))
        found = kept.pop(key, None)
        if found is None:
            found = compose(self, master_config, list(sweep_overrides))
            if len(kept) < MOST_KEPT:
                kept[key] = found
        return found

    def undo() -> None:
        kept.clear()
        changed.load_sweep_config = compose

    changed: Any = ConfigLoaderImpl
    changed.load_sweep_config = load_sweep_config
    return undo
