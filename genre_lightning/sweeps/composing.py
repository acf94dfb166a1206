"""The configurations of a sweep's jobs: each composed once, and what is common to them too."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

#: Configurations that are kept between the two times that Hydra asks for them, of about 1 MB each.
MAX_KEPT = 64


def compose_what_jobs_share_once(keep: bool) -> Callable[[], None]:
    """Have Hydra read the files of a sweep's configuration once for all jobs that read the same.

    Before any job starts Hydra composes all of them, so that an override which can't be used is
    told at once, and then each again to run it. That takes .15 s each time, as long as an epoch
    over embeddings, and most of it goes into the choice of files. What was read is kept here for
    each choice of groups, and a job's plain values are set in a copy of it.

    It holds for the rest of the process, or until it is undone; a second call changes nothing.

    Args:
        keep: a configuration that was composed to be checked until it is composed to be run, where
            this process does both.

    Returns:
        What undoes it, at the end of the sweep.
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
        loader: Hydra's, of the sweep.
        master: the sweep's configuration.
        compose: Hydra's own ``load_sweep_config``.
        most_kept: how many jobs' configurations are kept for a second time.
    """

    def __init__(
        self, loader: Any, master: DictConfig, compose: Callable[..., DictConfig], most_kept: int
    ) -> None:
        self.loader, self.master, self.most_kept = loader, master, most_kept
        self.sweep = _sweep_of(loader, master)
        self._compose = compose
        # With the groups in the folders of hydra.searchpath.
        _, self._repository = loader._parse_overrides_and_create_caching_repo(
            master.hydra.job.config_name, list(master.hydra.overrides.hydra)
        )
        #: The configuration by the overrides that choose files.
        self._chosen: dict[tuple[str, ...], DictConfig] = {}
        self._parsed: dict[str, Override] = {}
        self._kept: dict[tuple[str, ...], DictConfig] = {}
        #: Jobs that were composed before. One that is there twice is then composed twice to be run:
        #: Hydra makes a configuration that it runs read-only.
        self._known: set[tuple[str, ...]] = set()

    def compose(self, overrides: list[str]) -> DictConfig:
        """What Hydra's ``load_sweep_config`` gives for a job's overrides."""
        from hydra.errors import HydraException

        key = tuple(overrides)
        found = self._kept.pop(key, None)
        if found is not None:
            return found
        try:
            found = self._composed(overrides)
        except (HydraException, OmegaConfBaseException):
            # The error as Hydra tells it.
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
        # Values such as ${now:} stay those of the sweep.
        OmegaConf.copy_cache(from_config=self.master, to_config=cfg)
        return cfg

    def _parse(self, line: str) -> Override:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        if line not in self._parsed:
            (self._parsed[line],) = OverridesParser.create().parse_overrides([line])
        return self._parsed[line]

    def _sets_a_value(self, override: Override) -> bool:
        """Whether an override chooses no file, of this program's configuration or of Hydra's."""
        return (
            override.package is None
            and not override.is_hydra_override()
            and not self._repository.group_exists(override.key_or_group)
        )


def _sweep_of(loader: Any, master: DictConfig) -> tuple[Any, ...]:
    """What tells a sweep from another of the same process: a worker's jobs have copies of both."""
    hydra = master.hydra
    folders = tuple((part.provider, part.path) for part in loader.get_search_path().get_path())
    return (hydra.sweep.dir, hydra.job.config_name, tuple(hydra.overrides.hydra), folders)
