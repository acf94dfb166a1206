"""Patches to Hydra's composition: only once, faster, and with exact decimal ranges."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import hydra._internal.defaults_list
import omegaconf._utils
import omegaconf.base
import omegaconf.grammar_parser
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.types import FloatRange
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


@contextmanager
def composed_once() -> Iterator[None]:
    """Make Hydra compose the configuration of a run only once.

    A configuration can ask for a sweep (``hydra.mode``). To find out, Hydra composes it, discards
    the result and composes it again, which takes .1 s of each start. Here a run keeps the first
    result. Sweeps, and configurations that can't be composed, are left to Hydra.

    Only for commands without ``-m``; for those with it see :func:`known_to_be_a_sweep`.
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
def known_to_be_a_sweep() -> Iterator[None]:
    """Stop Hydra from composing the configuration just to find out whether it is a sweep.

    For commands with ``-m``. Hydra would compose it a second time, see :func:`composed_once`, and
    warn if ``hydra.mode`` asks for a single run.
    """
    with _replaced(Hydra, "get_mode", lambda hydra, config_name, overrides: None):
        yield


@functools.lru_cache(maxsize=1024)
def _parsed(*what: str) -> Any:
    return omegaconf.grammar_parser.parse(*what)


@contextmanager
def interpolations_parsed_once() -> Iterator[None]:
    """Make OmegaConf parse each interpolation, such as ``${monitor_mode}``, only once.

    Otherwise it parses 60 times for a run and for each job of a sweep, which takes .02 s.
    Interpolations are still resolved each time.
    """
    with (
        _replaced(omegaconf.base, "parse", _parsed),
        _replaced(omegaconf._utils, "parse", _parsed),
    ):
        yield


@contextmanager
def read_by_libyaml() -> Iterator[None]:
    """Make OmegaConf parse YAML with libyaml, which has no option for that.

    This saves a fifth of the composition's time. Scalars are still resolved by OmegaConf's own
    rules. Does nothing if PyYAML was built without libyaml.
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

    # The order of the bases lets libyaml's methods override those of PyYAML's own parser.
    return type("LibYamlLoader", (parser, plain()), {"__init__": begin})


@contextmanager
def defaults_without_copies() -> Iterator[None]:
    """Avoid two kinds of needless copies in Hydra, a quarter of a composition's time.

    For each file, Hydra builds a configuration of the choices in case a default interpolates them,
    as in ``data: ${model}``; here only if one does. It also deep-copies its repository of
    configurations although it only replaces the list of sources; here the copy is shallow.
    """
    choices = hydra._internal.defaults_list._create_interpolation_map

    def choices_if_asked(overrides: Any, defaults: list[Any], self_added: bool) -> DictConfig:
        if any(not default.is_self() and default.is_interpolation() for default in defaults):
            return choices(overrides, defaults, self_added)
        return OmegaConf.create()

    def begin(caching: CachingConfigRepository, repository: ConfigRepository) -> None:
        caching.delegate = copy.copy(repository)
        caching.cache = {}

    with (
        _replaced(hydra._internal.defaults_list, "_create_interpolation_map", choices_if_asked),
        _replaced(CachingConfigRepository, "__init__", begin),
    ):
        yield


@contextmanager
def faster_configuration() -> Iterator[None]:
    """Apply the patches that speed up every command."""
    with read_by_libyaml(), interpolations_parsed_once(), defaults_without_copies():
        yield


@contextmanager
def ranges_as_written() -> Iterator[None]:
    """Make ``range(0.1,0.4,0.1)`` contain 0.3, where Hydra's sum is 0.30000000000000004.

    Rounding errors don't decide either whether the end is left out, as in ``range(0,0.9,0.3)``.
    """

    def as_written(values: FloatRange) -> None:
        values.start, values.stop, values.step = (
            Decimal(str(number)) for number in (values.start, values.stop, values.step)
        )

    with _replaced(FloatRange, "__post_init__", as_written):
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
