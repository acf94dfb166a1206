"""Hydra's composition of a configuration: not twice for one run, and with the faster parser."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import omegaconf._utils
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException


@contextmanager
def composed_once() -> Iterator[None]:
    """Have Hydra compose the configuration of a run once.

    A configuration may say that it is a sweep's (``hydra.mode``). To find out, Hydra composes it,
    throws it away and composes it again: .1 s of each start. Here the run takes the first one. That
    of a sweep, or one that can't be composed, is left to Hydra.

    Only for commands without ``-m``: with it Hydra warns of a mode that is that of a run.
    """
    load: Callable[..., DictConfig] = ConfigLoaderImpl.load_configuration
    get_mode = Hydra.get_mode
    kept: tuple[tuple[Any, ...], DictConfig] | None = None

    def mode_of_kept(hydra: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        nonlocal kept
        asked = (hydra.config_loader, config_name, list(overrides), RunMode.RUN)
        try:
            composed = load(*asked)
        except (HydraException, OmegaConfBaseException, ValueError):
            return get_mode(hydra, config_name, overrides)
        if composed.hydra.mode not in (None, RunMode.RUN):
            return get_mode(hydra, config_name, overrides)
        kept = (asked, composed)
        return RunMode.RUN

    def load_or_take(
        loader: ConfigLoaderImpl,
        config_name: str | None,
        overrides: Sequence[str],
        run_mode: RunMode,
        **how: bool,
    ) -> DictConfig:
        nonlocal kept
        once, kept = kept, None
        if once is not None and once[0] == (loader, config_name, list(overrides), run_mode):
            return once[1]
        return load(loader, config_name, list(overrides), run_mode, **how)

    with (
        _replaced(Hydra, "get_mode", mode_of_kept),
        _replaced(ConfigLoaderImpl, "load_configuration", load_or_take),
    ):
        yield


@contextmanager
def read_by_libyaml() -> Iterator[None]:
    """Have OmegaConf parse YAML with libyaml, as it would by itself if it could choose.

    It takes a fifth of the composition's time from it. Scalars are still resolved by OmegaConf's
    own rules. Does nothing where PyYAML was built without libyaml.
    """
    if not yaml.__with_libyaml__:
        yield
        return
    plain = omegaconf._utils.get_yaml_loader
    with _replaced(
        omegaconf._utils, "get_yaml_loader", functools.cache(lambda: _by_libyaml(plain))
    ):
        yield


def _by_libyaml(plain: Callable[[], type]) -> type:
    parser: Any = yaml.cyaml.CParser

    def begin(loader: Any, stream: Any) -> None:
        parser.__init__(loader, stream)
        yaml.constructor.SafeConstructor.__init__(loader)
        yaml.resolver.Resolver.__init__(loader)

    # The parser's methods come before those of the same names that PyYAML's own parser has.
    return type("LibYamlLoader", (parser, plain()), {"__init__": begin})


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
