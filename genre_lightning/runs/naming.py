"""Names of a sweep's folders, made from the command and not the time, so that a rerun finds them.

conf/hydra/default.yaml uses :func:`sweep_name` and :func:`job_folder` as resolvers.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, cast

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from omegaconf import ListConfig, OmegaConf

from genre_lightning.runs.settings import changes_no_result, is_path

#: Maximum bytes of a folder's name; file systems allow 255.
MAX_NAME_BYTES = 200


def folder_name(text: str, shown: str | None = None) -> str:
    """Make a readable folder name; different texts give different names.

    Characters that are unsafe in file names become "-", and long names are cut. If that changes the
    name, a hash of the text is added after "~", which is an unsafe character itself.

    Args:
        text: text that determines the name.
        shown: shorter text to show; None for ``text``.
    """
    name = re.sub(r"[^\w.,=+@()\[\]-]", "-", text if shown is None else shown)
    if name != text or len(name.encode()) > MAX_NAME_BYTES:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
        cut = name.encode("utf-8", "replace")[: MAX_NAME_BYTES - len(digest) - 1]
        name = f"{cut.decode('utf-8', 'ignore')}~{digest}"
    return name or "defaults"


def sweep_name(
    given: str | None,
    overrides: Sequence[str],
    sweeper: Mapping[str, Any],
    base_folder: Path | None = None,
) -> str:
    """Name of a sweep: the given name, or else one made from the command.

    A made name contains the swept keys without values, so that values can be added later, and
    key=value for other settings, to keep different sweeps apart. The name of a ready-made sweep
    stands for its keys. Paths are shortened to their last part.

    Args:
        given: the user's name; None for none.
        overrides: the command's overrides.
        sweeper: ``cfg.hydra.sweeper``.
        base_folder: see :func:`_value_in_name`; None for the current folder.
    """
    if given is not None:
        return given
    base_folder = base_folder or Path.cwd()
    ready_made = sweeper.get("params") or {}
    named: list[str] = []
    swept: list[str] = []
    others: dict[str, str] = {}
    for override in read_overrides(overrides):
        key = key_of(override)
        if key == "sweep":
            named.append(value_of(override))
        elif override.is_sweep_override() and (key in ready_made or changes_no_result(key)):
            continue
        elif override.is_sweep_override():
            swept.append(_shown_key(key))
        elif not changes_no_result(key):
            others[key] = _value_in_name(override, base_folder)

    def join(values: Mapping[str, str]) -> str:
        return ",".join([*named, *sorted([*swept, *_pairs(values)])])

    return folder_name(join(others), join(_shorten_paths(others)))


def job_folder(overrides: Sequence[str], sweep: str) -> str:
    """Name of a job's folder, made from its sorted overrides.

    Settings shared by all jobs of the sweep's first command are left out. If the sweep was given a
    name, a later command can have other settings. Its jobs are named by the differences from the
    first command, with ``key=default`` for settings that they leave out. Paths are shortened to
    their last part.

    Args:
        overrides: the job's overrides.
        sweep: the sweep's folder.
    """
    first = read_command(Path(sweep))["fixed"]
    own = result_settings(read_overrides(overrides), first_working_directory(Path(sweep)))
    differences = {key: value for key, value in own.items() if first.get(key) != value}
    differences |= {key: "default" for key in first if key not in own}
    return folder_name(
        ",".join(sorted(_pairs(differences))), ",".join(sorted(_pairs(_shorten_paths(differences))))
    )


# The cache lets Hydra pass the sweep's resolved name on to its jobs, as for ${now:}. Every process
# that runs a job imports this module, with the SweepCallback that Hydra sends to it.
OmegaConf.register_new_resolver("sweep_name", sweep_name, use_cache=True, replace=True)
OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)


def read_overrides(overrides: Iterable[str]) -> list[Override]:
    """Read overrides as Hydra does."""
    loader = (
        GlobalHydra.instance().config_loader() if GlobalHydra.instance().is_initialized() else None
    )
    lines = as_given(overrides) if isinstance(overrides, ListConfig) else list(overrides)
    parsed: list[Override] = OverridesParser.create(loader).parse_overrides(lines)
    return parsed


def as_given(overrides: Any) -> list[str]:
    """Overrides as they were given: ``${seed}`` may have no value here, or another than in a job.

    Args:
        overrides: ``cfg.hydra.overrides.task``, a ListConfig.
    """
    return cast("list[str]", OmegaConf.to_container(overrides, resolve=False))


def sweep_overrides(hydra: Any) -> dict[str, Override]:
    """Overrides of a sweep by key: those of a ready-made sweep, updated by the command's.

    Args:
        hydra: ``cfg.hydra``.
    """
    ready_made = hydra.sweeper.get("params") or {}
    all_overrides = [
        *(f"{key}={value}" for key, value in ready_made.items()),
        *as_given(hydra.overrides.task),
    ]
    return {key_of(override): override for override in read_overrides(all_overrides)}


def command_name(hydra: Any) -> str:
    """Name of a sweep made from its command, even if the user gave it another name.

    Args:
        hydra: ``cfg.hydra``.
    """
    base_folder = first_working_directory(Path(hydra.sweep.dir))
    return sweep_name(None, hydra.overrides.task, hydra.sweeper, base_folder)


def key_of(override: Override) -> str:
    """The override's key, without a leading "+" (add) but with a leading "~" (remove)."""
    key: str = override.get_key_element().lstrip("+")
    return key


def value_of(override: Override) -> str:
    """The override's value as Hydra writes it for jobs: 0.01 for 1e-2."""
    value: str = override.get_value_element_as_str()
    return value


def _value_in_name(override: Override, base_folder: Path) -> str:
    """The value for use in names; the same for all ways to write the same path.

    Args:
        override: an override of any setting.
        base_folder: paths below this folder become relative to it, all others absolute.
    """
    value: Any = override.value()
    text = value.text if isinstance(value, QuotedString) else value
    if not is_path(key_of(override)) or not isinstance(text, str) or "${" in text:
        return value_of(override)
    path = Path(text).expanduser().absolute()
    resolved = path.resolve() if path.name == ".." else path.parent.resolve() / path.name
    return str(
        resolved.relative_to(base_folder) if resolved.is_relative_to(base_folder) else resolved
    )


def first_working_directory(sweep: Path) -> Path:
    """Working directory of a sweep's first command; the current one if there was none yet."""
    try:
        given_in = read_command(sweep).get("given_in")
    except FileNotFoundError:
        return Path.cwd()
    if given_in is None:  # begun by an older version, which did not record it
        return Path.cwd()
    return Path(os.path.normpath(sweep.absolute() / given_in)).resolve()


def _shown_key(key: str) -> str:
    """The key for use in a folder name: "branch" for ``model/branch``, without the slash."""
    return "branch" if key == "model/branch" else key


def _pairs(values: Mapping[str, str]) -> list[str]:
    return [f"{_shown_key(key)}={value}" for key, value in values.items()]


def _shorten_paths(values: Mapping[str, str]) -> dict[str, str]:
    """The values, with paths shortened to their last part."""
    return {
        key: PurePath(value.strip("'\"")).name if is_path(key) else value
        for key, value in values.items()
    }


def result_settings(overrides: Iterable[Override], base_folder: Path) -> dict[str, str]:
    """Values by key of the overrides that can change a result and are not swept.

    Args:
        overrides: overrides of a command or a job.
        base_folder: see :func:`_value_in_name`.
    """
    return {
        key: _value_in_name(override, base_folder)
        for override in overrides
        if not override.is_sweep_override() and not changes_no_result(key := key_of(override))
    }


def changed_settings(earlier: Sequence[str], now: Sequence[str]) -> str:
    """The settings in which a resumed run differs from its job, such as "trainer.max_epochs=30".

    Paths are left out, since a resume can write them differently.

    Args:
        earlier: overrides of the existing run.
        now: overrides of the job whose folder the run is in.
    """
    current = result_settings(read_overrides(now), Path.cwd())
    previous = result_settings(read_overrides(earlier), Path.cwd())
    return ",".join(
        f"{_shown_key(key)}={value}"
        for key, value in sorted(previous.items())
        if current.get(key) != value and not is_path(key)
    )


def format_overrides(overrides: Sequence[str], keys: Sequence[str]) -> str:
    """The overrides of some keys, as a job's name in the terminal and W&B."""
    values = {key_of(override): value_of(override) for override in read_overrides(overrides)}
    return ",".join(f"{_shown_key(key)}={values[key]}" for key in sorted(keys) if key in values)


def read_command(sweep: Path) -> dict[str, Any]:
    """Read ``sweep.json``, which a sweep's command writes for its jobs."""
    command: dict[str, Any] = json.loads((sweep / "sweep.json").read_text("utf-8"))
    return command
