"""Patches to Hydra: one fast composition, exact ranges, no merged branches, a shorter --help."""

from __future__ import annotations

import copy
import functools
import textwrap
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
from hydra.core.default_element import ResultDefault
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import FloatRange
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genre_lightning.errors import UserError

#: Start of the paths of the branches' files in conf/.
BRANCHES = "model/branch/"
#: Stem of the file with what the options of a group share; not an option itself.
SHARED = "base"


@contextmanager
def compose_once() -> Iterator[None]:
    """Make Hydra compose the configuration of a run only once.

    A configuration can ask for a sweep (``hydra.mode``). To find out, Hydra composes it, discards
    the result and composes it again, which takes .1 s of each start. Here a run keeps the first
    result. Sweeps, and configurations that can't be composed, are left to Hydra.

    Only for commands without ``-m``; for those with it see :func:`skip_mode_check`.
    """
    load: Callable[..., DictConfig] = ConfigLoaderImpl.load_configuration
    get_mode = Hydra.get_mode
    cached: tuple[tuple[Any, ...], DictConfig] | None = None

    def get_mode_and_keep(hydra: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        nonlocal cached
        arguments = (hydra.config_loader, config_name, list(overrides), RunMode.RUN)
        try:
            composed = load(*arguments)
        except (HydraException, OmegaConfBaseException, ValueError):
            return get_mode(hydra, config_name, overrides)
        if composed.hydra.mode not in (None, RunMode.RUN):
            return get_mode(hydra, config_name, overrides)
        cached = (arguments, composed)
        return RunMode.RUN

    def load_or_reuse(
        loader: ConfigLoaderImpl,
        config_name: str | None,
        overrides: Sequence[str],
        run_mode: RunMode,
        **options: bool,
    ) -> DictConfig:
        nonlocal cached
        entry, cached = cached, None
        if entry is not None and entry[0] == (loader, config_name, list(overrides), run_mode):
            return entry[1]
        return load(loader, config_name, list(overrides), run_mode, **options)

    with (
        _patched(Hydra, "get_mode", get_mode_and_keep),
        _patched(ConfigLoaderImpl, "load_configuration", load_or_reuse),
    ):
        yield


@contextmanager
def skip_mode_check() -> Iterator[None]:
    """Stop Hydra from composing the configuration just to find out whether it is a sweep.

    For commands with ``-m``. Hydra would compose it a second time, see :func:`compose_once`, and
    warn if ``hydra.mode`` asks for a single run.
    """
    with _patched(Hydra, "get_mode", lambda hydra, config_name, overrides: None):
        yield


@functools.lru_cache(maxsize=1024)
def _cached_parse(*arguments: str) -> Any:
    return omegaconf.grammar_parser.parse(*arguments)


@contextmanager
def cache_parsed_interpolations() -> Iterator[None]:
    """Make OmegaConf parse each interpolation, such as ``${monitor_mode}``, only once.

    Otherwise it parses 60 times for a run and for each job of a sweep, which takes .02 s.
    Interpolations are still resolved each time.
    """
    with (
        _patched(omegaconf.base, "parse", _cached_parse),
        _patched(omegaconf._utils, "parse", _cached_parse),
    ):
        yield


@contextmanager
def use_libyaml() -> Iterator[None]:
    """Make OmegaConf parse YAML with libyaml, which has no option for that.

    This saves a fifth of the composition's time. Scalars are still resolved by OmegaConf's own
    rules. Does nothing if PyYAML was built without libyaml.
    """
    if not yaml.__with_libyaml__:
        yield
        return
    get_loader = omegaconf._utils.get_yaml_loader
    with _patched(
        omegaconf._utils, "get_yaml_loader", functools.cache(lambda: _libyaml_loader(get_loader))
    ):
        yield


def _libyaml_loader(get_loader: Callable[[], type]) -> type:
    parser: Any = yaml.cyaml.CParser

    def init(loader: Any, stream: Any) -> None:
        parser.__init__(loader, stream)
        yaml.constructor.SafeConstructor.__init__(loader)
        yaml.resolver.Resolver.__init__(loader)

    # The order of the bases lets libyaml's methods override those of PyYAML's own parser.
    return type("LibYamlLoader", (parser, get_loader()), {"__init__": init})


@contextmanager
def avoid_copies_of_defaults() -> Iterator[None]:
    """Avoid two kinds of needless copies in Hydra, a quarter of a composition's time.

    For each file, Hydra builds a configuration of the choices in case a default interpolates them,
    as in ``data: ${model}``; here only if one does. It also deep-copies its repository of
    configurations although it only replaces the list of sources; here the copy is shallow.
    """
    create_map = hydra._internal.defaults_list._create_interpolation_map

    def create_map_if_needed(overrides: Any, defaults: list[Any], self_added: bool) -> DictConfig:
        if any(not default.is_self() and default.is_interpolation() for default in defaults):
            return create_map(overrides, defaults, self_added)
        return OmegaConf.create()

    def init_without_copy(caching: CachingConfigRepository, repository: ConfigRepository) -> None:
        caching.delegate = copy.copy(repository)
        caching.cache = {}

    with (
        _patched(hydra._internal.defaults_list, "_create_interpolation_map", create_map_if_needed),
        _patched(CachingConfigRepository, "__init__", init_without_copy),
    ):
        yield


@contextmanager
def speed_up_composition() -> Iterator[None]:
    """Apply the patches that speed up every command."""
    with use_libyaml(), cache_parsed_interpolations(), avoid_copies_of_defaults():
        yield


@contextmanager
def exact_decimal_ranges() -> Iterator[None]:
    """Make ``range(0.1,0.4,0.1)`` contain 0.3, where Hydra's sum is 0.30000000000000004.

    Rounding errors don't decide either whether the end is left out, as in ``range(0,0.9,0.3)``.
    """

    def to_decimals(values: FloatRange) -> None:
        values.start, values.stop, values.step = (
            Decimal(str(number)) for number in (values.start, values.stop, values.step)
        )

    with _patched(FloatRange, "__post_init__", to_decimals):
        yield


@contextmanager
def refuse_merged_branches() -> Iterator[None]:
    """Refuse two branches with the same package, whose settings Hydra would merge into one branch.

    A branch may still inherit from another one, by a defaults list in its own file.

    Raises:
        UserError: naming both options, while Hydra composes.
    """
    compose: Callable[..., DictConfig] = ConfigLoaderImpl._compose_config_from_defaults_list

    def check_and_compose(
        loader: ConfigLoaderImpl, defaults: list[ResultDefault], repo: Any
    ) -> DictConfig:
        options: dict[str | None, str] = {}
        for default in defaults:
            path, parent = default.config_path or "", default.parent or ""
            if not path.startswith(BRANCHES) or parent.startswith(BRANCHES):
                continue
            option = path.removeprefix(BRANCHES)
            other = options.setdefault(default.package, option)
            if other != option:
                raise UserError(
                    f"the branches {other} and {option} would be merged into one, since both are "
                    f"{default.package}: begin the file of one of them with # @package "
                    "model.branches. and its own name, or leave one out"
                )
        return compose(loader, defaults, repo)

    with _patched(ConfigLoaderImpl, "_compose_config_from_defaults_list", check_and_compose):
        yield


@contextmanager
def list_usable_options() -> Iterator[None]:
    """Make --help list only the groups that this command has, in lines of 80 columns.

    Hydra would list every folder in conf/, also ``prompt`` of genre-ask, and every file in it.
    """

    def format_groups(hydra: Hydra, is_listed: Callable[[str], bool], *_: Any) -> str:
        chosen = HydraConfig.get().runtime.choices
        lines = []
        for group in sorted(filter(is_listed, hydra.list_all_config_groups())):
            if group.partition("/")[0] in chosen:  # model/branch belongs to model
                options = sorted({*hydra.config_loader.get_group_options(group)} - {SHARED})
                line = f"{group}: {', '.join(options)}"
                lines.append(textwrap.fill(line, 80, subsequent_indent="  "))
        return "\n".join(lines)

    with _patched(Hydra, "format_config_groups", format_groups):
        yield


@contextmanager
def _patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
