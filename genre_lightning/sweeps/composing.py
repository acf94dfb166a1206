"""A cache of the configurations of a sweep's jobs, so that each is composed only once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

#: Maximum number of configurations kept between Hydra's two requests for them, of about 1 MB each.
MAX_CACHED = 64


def cache_job_configs(keep: bool) -> Callable[[], None]:
    """Make Hydra read a sweep's configuration files once for all jobs that use the same files.

    Before any job starts, Hydra composes all jobs, so that an invalid override is reported at once,
    and later composes each one again to run it. That takes 0.15 s each time, as long as an epoch
    over embeddings, most of it for the choice of files. So the configuration of each choice of
    groups is kept, and a job's plain values are set in a copy.

    This holds for the rest of the process, or until it is undone; a second call changes nothing.

    Args:
        keep: keep a configuration that was composed for the check until the job runs, if this
            process does both.

    Returns:
        A function that restores Hydra's own method, for the end of the sweep.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    loader_class: Any = ConfigLoaderImpl
    compose = loader_class.load_sweep_config
    if hasattr(compose, "undo"):
        undo: Callable[[], None] = compose.undo
        return undo
    cache: _ConfigCache | None = None

    def load_sweep_config(
        self: Any, master_config: DictConfig, sweep_overrides: Sequence[str]
    ) -> DictConfig:
        nonlocal cache
        if cache is None or cache.sweep != _sweep_identity(self, master_config):
            cache = _ConfigCache(self, master_config, compose, MAX_CACHED if keep else 0)
        return cache.compose(list(sweep_overrides))

    def restore() -> None:
        nonlocal cache
        cache = None
        loader_class.load_sweep_config = compose

    load_sweep_config.undo = restore  # type: ignore[attr-defined]
    loader_class.load_sweep_config = load_sweep_config
    return restore


class _ConfigCache:
    """Cached configurations of the jobs of one sweep.

    Args:
        loader: Hydra's config loader, of the sweep.
        master: the sweep's configuration.
        compose: Hydra's own ``load_sweep_config``.
        max_cached: maximum number of jobs whose configurations are kept for a second request.
    """

    def __init__(
        self, loader: Any, master: DictConfig, compose: Callable[..., DictConfig], max_cached: int
    ) -> None:
        self.loader, self.master, self.max_cached = loader, master, max_cached
        self.sweep = _sweep_identity(loader, master)
        self._compose = compose
        # Includes the groups in the folders of hydra.searchpath.
        _, self._repository = loader._parse_overrides_and_create_caching_repo(
            master.hydra.job.config_name, list(master.hydra.overrides.hydra)
        )
        #: The configuration by the overrides that choose files.
        self._by_files: dict[tuple[str, ...], DictConfig] = {}
        self._parsed: dict[str, Override] = {}
        self._cached: dict[tuple[str, ...], DictConfig] = {}
        #: Jobs that were composed before. A job that the sweep has twice is composed anew for each
        #: run, since Hydra makes a configuration that it runs read-only.
        self._requested: set[tuple[str, ...]] = set()

    def compose(self, overrides: list[str]) -> DictConfig:
        """Return what Hydra's ``load_sweep_config`` returns for a job's overrides."""
        from hydra.errors import HydraException

        key = tuple(overrides)
        cfg = self._cached.pop(key, None)
        if cfg is not None:
            return cfg
        try:
            cfg = self._compose_from_files(overrides)
        except (HydraException, OmegaConfBaseException):
            # Let Hydra raise its own error.
            cfg = self._compose(self.loader, self.master, overrides)
        if key not in self._requested and len(self._cached) < self.max_cached:
            self._cached[key] = cfg
        self._requested.add(key)
        return cfg

    def _compose_from_files(self, overrides: list[str]) -> DictConfig:
        from hydra._internal.config_loader_impl import get_overrides_dirname

        parsed = {line: self._parse(line) for line in overrides}
        values = [line for line in overrides if self._is_plain_value(parsed[line])]
        choices = tuple(line for line in overrides if line not in values)
        if choices not in self._by_files:
            self._by_files[choices] = self._compose(self.loader, self.master, list(choices))
        cfg = copy.deepcopy(self._by_files[choices])
        self.loader._apply_overrides_to_config([parsed[line] for line in values], cfg)
        task = [line for line in overrides if not parsed[line].is_hydra_override()]
        cfg.hydra.overrides.task = task
        dirname_config = cfg.hydra.job.config.override_dirname
        cfg.hydra.job.override_dirname = get_overrides_dirname(
            overrides=[parsed[line] for line in task],
            kv_sep=dirname_config.kv_sep,
            item_sep=dirname_config.item_sep,
            exclude_keys=dirname_config.exclude_keys,
        )
        # Values such as ${now:} are those of the sweep.
        OmegaConf.copy_cache(from_config=self.master, to_config=cfg)
        return cfg

    def _parse(self, line: str) -> Override:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        if line not in self._parsed:
            (self._parsed[line],) = OverridesParser.create().parse_overrides([line])
        return self._parsed[line]

    def _is_plain_value(self, override: Override) -> bool:
        """Whether an override sets a value, rather than choosing a config file."""
        return (
            override.package is None
            and not override.is_hydra_override()
            and not self._repository.group_exists(override.key_or_group)
        )


def _sweep_identity(loader: Any, master: DictConfig) -> tuple[Any, ...]:
    """Return a key that identifies the sweep; equal for copies of both arguments, as in workers."""
    hydra = master.hydra
    search_path = tuple(
        (source.provider, source.path) for source in loader.get_search_path().get_path()
    )
    return (hydra.sweep.dir, hydra.job.config_name, tuple(hydra.overrides.hydra), search_path)
