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
from genre_lightning.wording import closest_name, did_you_mean

#: Version of Hydra whose behaviour the configuration is written for.
VERSION_BASE = "1.3"
_FOLDERS = "hydra.searchpath"
#: Options that need an extra of the package.
EXTRAS = {
    ("hydra/launcher", "submitit_slurm"): "slurm",
    ("hydra/launcher", "submitit_local"): "slurm",
}


def also_options_of(folder: str | Path) -> str:
    """The override that adds the options in a folder."""
    place = str(Path(folder).resolve()).replace("'", "\\'")
    return f"{_FOLDERS}=['file://{place}']"


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
    found = re.search(r"Could not (?:find|load) '([\w/]+)/([^/']+)'", text)
    if isinstance(error, MissingConfigException) and found:
        return _no_option(found[1], found[2], conf, config, arguments)
    if found := re.match(r"Could not override '(.+?)'", text):
        return _unknown(found[1], conf, config, arguments)
    if found := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'", text):
        return f"{found[1]} names several values: -m sweeps over them, and key=[a,b] is a list"
    if "Interpolation key 'sweep.n_trials' not found" in text:
        return "hydra/sweeper=optuna gets its settings from sweep=optuna: use that instead"
    if isinstance(error.__cause__, OmegaConfBaseException):
        text = f"{text}: {error.__cause__}"
    # OmegaConf adds lines about its own types.
    lines = [
        line for line in text.splitlines() if not re.match(r"\s*(object_type|reference_type)", line)
    ]
    return " ".join(" ".join(lines).split())


def _no_option(
    group: str, option: str, conf: str | Path, config: str, arguments: Sequence[str]
) -> str:
    if extra := EXTRAS.get((group, option)):
        return (
            f"{group}={option} needs a package that is not installed: "
            f'pip install "genre-lightning[{extra}]"'
        )
    with initialize_config_dir(str(conf), version_base=VERSION_BASE):
        options = (
            GlobalHydra.instance()
            .config_loader()
            .get_group_options(group, config_name=config, overrides=_own_folders(arguments))
        )
    hint = did_you_mean(closest_name(option, options))
    return f"{group}={option}: there is no such option{hint or '.'} There are {', '.join(options)}"


def _unknown(key: str, conf: str | Path, config: str, arguments: Sequence[str]) -> str:
    folders = _own_folders(arguments)
    overrides = [a for a in arguments if re.match(r"~|[\w+].*=", a) and a not in folders]
    others = [override for override in overrides if not _sets(override, key)]
    with initialize_config_dir(str(conf), version_base=VERSION_BASE):
        groups = list(_groups(GlobalHydra.instance().config_loader()))
        choices = [other for other in others if any(_sets(other, group) for group in groups)]
        for chosen in (others, choices, []):
            # Fails on another mistake, which is reported once the user has fixed this one.
            with suppress(HydraException):
                composed = compose(config, [*folders, *chosen], return_hydra_config=True)
                break
    plain = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(plain, dict)
    known = [*groups, *_keys(plain)]
    adds = f"+{key}=... adds one"
    if ends := [name for name in known if name.endswith(f".{key}")]:  # optimizer.lr for lr
        nearest = min(ends, key=lambda name: name.count("."))
        return f"there is no setting {key}{did_you_mean(nearest)}"
    there, lacking = _parted(key, set(known))
    beside = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == there]
    first, _, rest = lacking.partition(".")
    close = closest_name(first, beside)
    if close is not None:
        beginning = f"{there}.{close}".strip(".")
        meant = f"{beginning}.{rest}"
        hint = did_you_mean(meant if meant in known else beginning)
        if "_target_" in beside:  # the class can have arguments that the config does not list
            hint = f"{hint} {adds}"
        return f"there is no setting {key}{hint}"
    if there and beside:
        return f"there is no setting {key}; {there} has {', '.join(beside)}, and {adds}"
    close = closest_name(key, known, likeness=0.75)
    if close is not None:
        return f"there is no setting {key}{did_you_mean(close)}"
    return f"there is no setting {key}; --help shows all, and {adds}"


def _parted(key: str, known: Collection[str]) -> tuple[str, str]:
    """Split a key after its longest known prefix, as in ("model", "branchs.title")."""
    names = key.split(".")
    for count in range(len(names) - 1, 0, -1):
        there = ".".join(names[:count])
        if there in known:
            return there, ".".join(names[count:])
    return "", key


def _own_folders(arguments: Sequence[str]) -> list[str]:
    """Overrides that add the user's folder of options, given by --config-dir or an override."""
    folder = get_args_parser().parse_known_args(arguments)[0].config_dir
    if folder is not None:
        return [also_options_of(folder)]
    return [argument for argument in arguments if _sets(argument, _FOLDERS)]


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
