"""Hydra's errors as one sentence, with a suggestion for a misspelt name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.compose import compose
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.initialize import initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genre_lightning.errors import UserError
from genre_lightning.runs.composing import SHARED
from genre_lightning.wording import closest_name, did_you_mean, listed

#: Version of Hydra whose behaviour the configuration is written for.
VERSION_BASE = "1.3"
_SEARCH_PATH = "hydra.searchpath"
#: Sections of which only the settings in the files are read, so that adding one has no effect.
NOTHING_TO_ADD = ("model", "model.recipe", "sweep")
#: Options that need an extra of the package.
EXTRAS = {
    ("hydra/launcher", "submitit_slurm"): "slurm",
    ("hydra/launcher", "submitit_local"): "slurm",
}


def searchpath_override(folder: str | Path) -> str:
    """The override that adds the options in a folder."""
    path = str(Path(folder).resolve()).replace("'", "\\'")
    return f"{_SEARCH_PATH}=['file://{path}']"


def explain_error(error: Exception, conf: str | Path, config: str, arguments: Sequence[str]) -> str:
    """Explain to the user what is wrong with a command.

    Args:
        error: an error of Hydra or OmegaConf.
        conf: the configuration's folder.
        config: the configuration's name in that folder, such as "train".
        arguments: the command's arguments, including overrides.
    """
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override} can't be read: an override is key=value, and a value that contains "
            "blanks, commas, brackets or = needs its own quotes, \"key='a, b'\""
        )
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, UserError):
        return str(error.__cause__)
    text = str(error)
    # "find" for a single option, "load" for an option in a list.
    match = re.search(r"Could not (?:find|load) '([\w/]+)/([^/']+)'", text)
    if isinstance(error, MissingConfigException) and match:
        return _explain_unknown_option(match[1], match[2], conf, config, arguments)
    if match := re.match(r"Could not override '(.+?)'", text):
        return _explain_unknown_setting(match[1], conf, config, arguments)
    if match := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'", text):
        return f"{match[1]} names several values: -m sweeps over them, and key=[a,b] is a list"
    if "Interpolation key 'sweep.n_trials' not found" in text:
        return "hydra/sweeper=optuna gets its settings from sweep=optuna: use that instead"
    if isinstance(error.__cause__, OmegaConfBaseException):
        text = f"{text}: {error.__cause__}"
    # OmegaConf adds lines about its own types.
    lines = [
        line for line in text.splitlines() if not re.match(r"\s*(object_type|reference_type)", line)
    ]
    return " ".join(" ".join(lines).split())


def _explain_unknown_option(
    group: str, option: str, conf: str | Path, config: str, arguments: Sequence[str]
) -> str:
    if extra := EXTRAS.get((group, option)):
        return (
            f"{group}={option} needs a package that is not installed: "
            f'pip install "genre-lightning[{extra}]"'
        )
    with initialize_config_dir(str(conf), version_base=VERSION_BASE):
        options = _options(group, config, _searchpath_overrides(arguments))
    hint = did_you_mean(closest_name(option, options))
    return f"{group}={option}: there is no such option{hint or '.'} There are {', '.join(options)}"


def _explain_unknown_setting(
    key: str, conf: str | Path, config: str, arguments: Sequence[str]
) -> str:
    folders = _searchpath_overrides(arguments)
    overrides = [a for a in arguments if re.match(r"~|[\w+].*=", a) and a not in folders]
    others = [override for override in overrides if not _sets(override, key)]
    with initialize_config_dir(str(conf), version_base=VERSION_BASE):
        groups = list(_groups(GlobalHydra.instance().config_loader()))
        choices = [other for other in others if any(_sets(other, group) for group in groups)]
        for candidates in (others, choices, []):
            # Fails on another mistake, which is reported once the user has fixed this one.
            with suppress(HydraException):
                composed = compose(config, [*folders, *candidates], return_hydra_config=True)
                break
        owners = _options_with(key, config, folders)
    plain = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(plain, dict)
    known = [*groups, *_keys(plain)]
    if key in groups:
        return f"{key} is not a setting of this command; --help shows all"
    if key in known:  # so it is missing only with the options of this command
        return (
            f"there is no setting {key} with all of {' '.join(choices)}: leave it out, or give the "
            "options that have it in a command of their own"
        )
    if owners:  # data.path is a setting of data=manifest
        have = "has" if len(owners) == 1 else "have"
        return f"there is no setting {key} here, but {listed(owners)} {have} it"
    if same_ending := [name for name in known if name.endswith(f".{key}")]:  # optimizer.lr for lr
        nearest = min(same_ending, key=lambda name: name.count("."))
        return f"there is no setting {key}{did_you_mean(nearest)}"
    return f"there is no setting {key}{_suggestion(key, known)}"


def _suggestion(key: str, known: Collection[str]) -> str:
    """How the message about an unknown setting goes on: similar names, or those beside it."""
    how_to_add = f"+{key}=... adds one"
    parent, remainder = _split_key(key, set(known))
    siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == parent]
    first, _, rest = remainder.partition(".")
    closest = closest_name(first, siblings)
    if closest is not None:
        corrected = f"{parent}.{closest}".strip(".")
        suggestion = f"{corrected}.{rest}"
        hint = did_you_mean(suggestion if suggestion in known else corrected)
        if "_target_" in siblings:  # the class can have arguments that the config does not list
            hint = f"{hint} {how_to_add}"
        return hint
    if parent and siblings:
        names = ", ".join(siblings)
        names += "" if parent in NOTHING_TO_ADD else f", and {how_to_add}"
        return f"; {parent} has {names}"
    return did_you_mean(closest_name(key, known, min_similarity=0.75)) or "; --help shows all"


def _options_with(key: str, config: str, folders: Sequence[str]) -> list[str]:
    """The choices of a group, such as data=manifest, that have a setting which others lack."""
    group, _, setting = key.partition(".")
    loader = GlobalHydra.instance().config_loader()
    if not setting or "." in setting or group not in _groups(loader):
        return []
    found = []
    for option in _options(group, config, folders):
        with suppress(HydraException):
            composed = compose(config, [*folders, f"{group}={option}"])
            if setting in list(composed.get(group) or ()):
                found.append(f"{group}={option}")
    return found


def _options(group: str, config: str, folders: Sequence[str]) -> list[str]:
    """The options of a group, of conf/ and the user's folders."""
    loader = GlobalHydra.instance().config_loader()
    names = loader.get_group_options(group, config_name=config, overrides=list(folders))
    return [name for name in names if name != SHARED]


def _split_key(key: str, known: Collection[str]) -> tuple[str, str]:
    """Split a key after its longest known prefix, as in ("model", "branchs.title")."""
    names = key.split(".")
    for count in range(len(names) - 1, 0, -1):
        prefix = ".".join(names[:count])
        if prefix in known:
            return prefix, ".".join(names[count:])
    return "", key


def _searchpath_overrides(arguments: Sequence[str]) -> list[str]:
    """Overrides that add the user's folder of options, given by --config-dir or an override."""
    folder = get_args_parser().parse_known_args(arguments)[0].config_dir
    if folder is not None:
        return [searchpath_override(folder)]
    return [argument for argument in arguments if _sets(argument, _SEARCH_PATH)]


def _sets(argument: str, key: str) -> bool:
    return argument.lstrip("+~").partition("=")[0] == key


def _keys(config: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")


def _groups(loader: ConfigLoader, parent: str = "") -> Iterator[str]:
    for name in loader.list_groups(parent):
        group = f"{parent}/{name}" if parent else name
        yield group
        yield from _groups(loader, group)
