"""Names of a sweep's folders: made from the command and never from the time, to be found again.

The functions here are resolvers in conf/hydra/default.yaml.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from omegaconf import OmegaConf

from genre_lightning.runs.settings import changes_no_result, is_path

#: Bytes of a folder's name: file systems take 255.
LONGEST_NAME = 200


def folder_name(text: str, shown: str | None = None) -> str:
    """A name for a folder that can still be read; different texts give different names.

    Characters that are trouble in file names become "-", and what is too long is cut; a hash after
    "~", which is such a character, then tells the names apart.

    Args:
        text: what is named.
        shown: what can be read of it, where that is less.
    """
    name = re.sub(r"[^\w.,=+@()\[\]-]", "-", text if shown is None else shown)
    if name != text or len(name.encode()) > LONGEST_NAME:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
        cut = name.encode("utf-8", "replace")[: LONGEST_NAME - len(digest) - 1]
        name = f"{cut.decode('utf-8', 'ignore')}~{digest}"
    return name or "defaults"


def sweep_name(
    given: str | None,
    overrides: Sequence[str],
    sweeper: Mapping[str, Any],
    seen_from: Path | None = None,
) -> str:
    """The name of a sweep: the one given, else made from the command.

    It holds the keys that are swept, not their values, so that values can be added, and key=value
    for the others, so that sweeps with different settings are kept apart. A ready-made sweep has
    its own name for its keys. Of a path only its end can be read.

    Args:
        given: by the user; None for none.
        overrides: of the command.
        sweeper: ``cfg.hydra.sweeper``.
        seen_from: see :func:`_setting`; by default the current folder.
    """
    if given is not None:
        return given
    seen_from = seen_from or Path.cwd()
    ready = sweeper.get("params") or {}
    named: list[str] = []
    swept: list[str] = []
    others: dict[str, str] = {}
    for override in parsed(overrides):
        key = key_of(override)
        if key == "sweep":
            named.append(value_of(override))
        elif override.is_sweep_override() and (key in ready or changes_no_result(key)):
            continue
        elif override.is_sweep_override():
            swept.append(_shown(key))
        elif not changes_no_result(key):
            others[key] = _setting(override, seen_from)

    def joined(values: Mapping[str, str]) -> str:
        return ",".join([*named, *sorted([*swept, *_pairs(values)])])

    return folder_name(joined(others), joined(_without_folders(others)))


def job_folder(overrides: Sequence[str], sweep: str) -> str:
    """The name of a job's folder, from its overrides, sorted.

    What was the same for all jobs of the sweep's first command is left out. A later command may
    have other settings, where the sweep was given a name: its jobs are named by what differs from
    the first one's, ``key=default`` for what it leaves out. Of a path only its end can be read.

    Args:
        overrides: of the job.
        sweep: the sweep's folder.
    """
    first = read_command(Path(sweep))["fixed"]
    own = result_settings(parsed(overrides), first_place(Path(sweep)))
    differ = {key: value for key, value in own.items() if first.get(key) != value}
    differ |= {key: "default" for key in first if key not in own}
    return folder_name(
        ",".join(sorted(_pairs(differ))), ",".join(sorted(_pairs(_without_folders(differ))))
    )


# Cached: Hydra hands what the sweep has resolved on to its jobs, as it does for ${now:}. This
# module is imported wherever a job runs, by SweepCallback, which Hydra sends along.
OmegaConf.register_new_resolver("sweep_name", sweep_name, use_cache=True, replace=True)
OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)


def parsed(overrides: Iterable[str]) -> list[Override]:
    """Read overrides as Hydra does."""
    loader = (
        GlobalHydra.instance().config_loader() if GlobalHydra.instance().is_initialized() else None
    )
    found: list[Override] = OverridesParser.create(loader).parse_overrides(list(overrides))
    return found


def sweep_overrides(hydra: Any) -> dict[str, Override]:
    """The overrides of a sweep by key: of a ready-made one its own, then those of the command.

    Args:
        hydra: ``cfg.hydra``.
    """
    ready = hydra.sweeper.get("params") or {}
    given = [*(f"{key}={value}" for key, value in ready.items()), *hydra.overrides.task]
    return {key_of(override): override for override in parsed(given)}


def command_name(hydra: Any) -> str:
    """What a sweep is called by its command alone, whatever name it was given.

    Args:
        hydra: ``cfg.hydra``.
    """
    seen_from = first_place(Path(hydra.sweep.dir))
    return sweep_name(None, hydra.overrides.task, hydra.sweeper, seen_from)


def key_of(override: Override) -> str:
    """The key, without "+" for adding it; "~" for removing it stays."""
    key: str = override.get_key_element().lstrip("+")
    return key


def value_of(override: Override) -> str:
    """The value, written as Hydra hands it on to jobs: 0.01 for 1e-2."""
    value: str = override.get_value_element_as_str()
    return value


def _setting(override: Override, seen_from: Path) -> str:
    """The value as names are made of it: of a path the same however, and from wherever, it is told.

    Args:
        override: of any key.
        seen_from: a folder. What is below it is named by its path from there, all else by its whole
            path.
    """
    value: Any = override.value()
    text = value.text if isinstance(value, QuotedString) else value
    if not is_path(key_of(override)) or not isinstance(text, str) or "${" in text:
        return value_of(override)
    path = Path(text).expanduser().absolute()
    place = path.resolve() if path.name == ".." else path.parent.resolve() / path.name
    return str(place.relative_to(seen_from) if place.is_relative_to(seen_from) else place)


def first_place(sweep: Path) -> Path:
    """The folder in which the first command of a sweep was given: this one, if it has none yet."""
    try:
        given_in = read_command(sweep).get("given_in")
    except FileNotFoundError:
        return Path.cwd()
    if given_in is None:  # begun before this was written down
        return Path.cwd()
    return Path(os.path.normpath(sweep.absolute() / given_in)).resolve()


def _shown(key: str) -> str:
    """A key as a folder is named by it: without the slash of the group that lists branches."""
    return "branch" if key == "model/branch" else key


def _pairs(values: Mapping[str, str]) -> list[str]:
    return [f"{_shown(key)}={value}" for key, value in values.items()]


def _without_folders(values: Mapping[str, str]) -> dict[str, str]:
    """The values, of paths only their last part."""
    return {
        key: PurePath(value.strip("'\"")).name if is_path(key) else value
        for key, value in values.items()
    }


def result_settings(overrides: Iterable[Override], seen_from: Path) -> dict[str, str]:
    """Values by key, of those overrides that change a result and are no sweep.

    Args:
        overrides: of a command or a job.
        seen_from: see :func:`_setting`.
    """
    return {
        key: _setting(override, seen_from)
        for override in overrides
        if not override.is_sweep_override() and not changes_no_result(key := key_of(override))
    }


def other_settings(earlier: Sequence[str], now: Sequence[str]) -> str:
    """The settings that a run was resumed with and its job does not have: "trainer.max_epochs=30".

    Paths are left out, which a resume may write in another way.

    Args:
        earlier: overrides of the run as it is.
        now: of the job that finds it in its folder.
    """
    here = result_settings(parsed(now), Path.cwd())
    there = result_settings(parsed(earlier), Path.cwd())
    return ",".join(
        f"{_shown(key)}={value}"
        for key, value in sorted(there.items())
        if here.get(key) != value and not is_path(key)
    )


def chosen_overrides(overrides: Sequence[str], keys: Sequence[str]) -> str:
    """The overrides of some keys, as the terminal and W&B call a job."""
    values = {key_of(override): value_of(override) for override in parsed(overrides)}
    return ",".join(f"{_shown(key)}={values[key]}" for key in sorted(keys) if key in values)


def read_command(sweep: Path) -> dict[str, Any]:
    """What the command that runs a sweep has written for its jobs."""
    command: dict[str, Any] = json.loads((sweep / "sweep.json").read_text("utf-8"))
    return command
