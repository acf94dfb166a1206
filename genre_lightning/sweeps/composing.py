"""Composing the configuration of each of a sweep's jobs, and their common part, only once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

#: Most configurations kept between Hydra's two requests for them, of about 1 MB each.
MAX_KEPT = 64


def compose_what_jobs_share_once(keep: bool) -> Callable[[], None]:
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
        A function that undoes this, for the end of the sweep.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    changed: Any = ConfigLoaderImpl
    compose = changed.load_sweep_config
    if hasattr(compose, "undo"):
        undo: Callable[[], None] = compose.undo
        return undo
    shared: _Shared | None = None

    def load_sweep_config(
        self: Any, master_config: DictConfig, sweep_overrides: Sequence[str]
    ) -> DictConfig:
        nonlocal shared
        if shared is None or shared.sweep != _sweep_of(self, master_config):
            shared = _Shared(self, master_config, compose, MAX_KEPT if keep else 0)
        return shared.compose(list(sweep_overrides))

    def undo_it() -> None:
        nonlocal shared
        shared = None
        changed.load_sweep_config = compose

    load_sweep_config.undo = undo_it  # type: ignore[attr-defined]
    changed.load_sweep_config = load_sweep_config
    return undo_it


class _Shared:
    """What the jobs of one sweep have in common.

    Args:
        loader: Hydra's config loader, of the sweep.
        master: the sweep's configuration.
        compose: Hydra's own ``load_sweep_config``.
        most_kept: most jobs whose configurations are kept for a second request.
    """

    def __init__(
        self, loader: Any, master: DictConfig, compose: Callable[..., DictConfig], most_kept: int
    ) -> None:
        self.loader, self.master, self.most_kept = loader, master, most_kept
        self.sweep = _sweep_of(loader, master)
        self._compose = compose
        # Includes the groups in the folders of hydra.searchpath.
        _, self._repository = loader._parse_overrides_and_create_caching_repo(
            master.hydra.job.config_name, list(master.hydra.overrides.hydra)
        )
        #: The configuration by the overrides that choose files.
        self._chosen: dict[tuple[str, ...], DictConfig] = {}
        self._parsed: dict[str, Override] = {}
        self._kept: dict[tuple[str, ...], DictConfig] = {}
        #: Jobs that were composed before. A job that the sweep has twice is composed anew for each
        #: run, since Hydra makes a configuration that it runs read-only.
        self._known: set[tuple[str, ...]] = set()

    def compose(self, overrides: list[str]) -> DictConfig:
        """Return what Hydra's ``load_sweep_config`` returns for a job's overrides."""
        from hydra.errors import HydraException

        key = tuple(overrides)
        found = self._kept.pop(key, None)
        if found is not None:
            return found
        try:
            found = self._composed(overrides)
        except (HydraException, OmegaConfBaseException):
            # Let Hydra raise its own error.
            found = self._compose(self.loader, self.master, overrides)
        if key not in self._known and len(self._kept) < self.most_kept:
            self._kept[key] = found
        self._known.add(key)
        return found

    def _composed(self, overrides: list[str]) -> DictConfig:
        from hydra._internal.config_loader_impl import get_overrides_dirname

        parsed = {line: self._parse(line) for line in overrides}
        values = [line for line in overrides if self._sets_a_value(parsed[line])]
        choices = tuple(line for line in overrides if line not in values)
        if choices not in self._chosen:
            self._chosen[choices] = self._compose(self.loader, self.master, list(choices))
        cfg = copy.deepcopy(self._chosen[choices])
        self.loader._apply_overrides_to_config([parsed[line] for line in values], cfg)
        task = [line for line in overrides if not parsed[line].is_hydra_override()]
        cfg.hydra.overrides.task = task
        named = cfg.hydra.job.config.override_dirname
        cfg.hydra.job.override_dirname = get_overrides_dirname(
            overrides=[parsed[line] for line in task],
            kv_sep=named.kv_sep,
            item_sep=named.item_sep,
            exclude_keys=named.exclude_keys,
        )
        # Values such as ${now:} are those of the sweep.
        OmegaConf.copy_cache(from_config=self.master, to_config=cfg)
        return cfg

    def _parse(self, line: str) -> Override:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        if line not in self._parsed:
            (self._parsed[line],) = OverridesParser.create().parse_overrides([line])
        return self._parsed[line]

    def _sets_a_value(self, override: Override) -> bool:
        """Whether an override sets a value, and chooses no config file of ours or of Hydra's."""
        return (
            override.package is None
            and not override.is_hydra_override()
            and not self._repository.group_exists(override.key_or_group)
        )


def _sweep_of(loader: Any, master: DictConfig) -> tuple[Any, ...]:
    """Return what identifies a sweep, even where a worker's jobs have copies of both arguments."""
    hydra = master.hydra
    folders = tuple((part.provider, part.path) for part in loader.get_search_path().get_path())
    return (hydra.sweep.dir, hydra.job.config_name, tuple(hydra.overrides.hydra), folders)
