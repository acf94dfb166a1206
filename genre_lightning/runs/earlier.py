"""Overrides of a run that is resumed, so that they don't have to be given again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from genre_lightning.errors import UserError
from genre_lightning.runs.ckpt_path import CONFIG_FOLDER, LAST, resolve_run
from genre_lightning.runs.quoting import format_override, shell_command
from genre_lightning.runs.settings import is_path

#: Settings about a run's place and its sweep, not about what it trains.
RUN_SPECIFIC = ("ckpt_path", "hydra", "sweep")


def add_earlier_overrides(arguments: Sequence[str]) -> list[str]:
    """Add the overrides of the run that ``ckpt_path`` refers to, if it is a run folder.

    New overrides replace earlier ones of the same setting. The remaining earlier ones come before
    all new ones, which may change a setting that they add. Nothing is added if ``ckpt_path`` is a
    file, whatever its folder, or for a sweep.

    Args:
        arguments: arguments of train.py, with paths quoted.

    Raises:
        UserError: there is no such run, or its overrides can't be used.
    """
    if not any(argument.startswith("ckpt_path=") for argument in arguments):
        return list(arguments)
    new = _overrides(arguments)
    new_by_key = {setting.key_or_group: setting for setting in new}
    is_sweep = bool({"-m", "--multirun"} & set(arguments))
    run = None if is_sweep else _resumed_run(new_by_key)
    if run is None or not (run / CONFIG_FOLDER / "overrides.yaml").is_file():
        return list(arguments)
    overrides_file = run / CONFIG_FOLDER / "overrides.yaml"
    runtime = _runtime(overrides_file.with_name("hydra.yaml"))
    kept = [
        setting
        for setting in _read(overrides_file)
        if not _is_run_specific(setting) and not _is_replaced(setting, new_by_key)
    ]
    code = code_overrides(str(setting.input_line) for setting in kept)
    if code:  # a folder from elsewhere must not choose what is run here
        raise UserError(
            f"{overrides_file} names code to run: if you trust it, give this again: "
            f"{shell_command(*code)}"
        )
    earlier = [_resolve_path(setting, runtime.get("cwd")) for setting in kept]
    options = [] if "--config-dir" in arguments else _config_dir_arguments(runtime)
    position = arguments.index(str(new[0].input_line))
    return [*options, *arguments[:position], *earlier, *arguments[position:]]


def _resumed_run(new_by_key: Mapping[str, Override]) -> Path | None:
    """The run folder that ``ckpt_path`` refers to; None if it is null, a file or not given."""
    ckpt_override, folder = new_by_key.get("ckpt_path"), new_by_key.get("hydra.run.dir")
    ckpt_path = None if ckpt_override is None else ckpt_override.value()
    if ckpt_path is None:
        return None
    if ckpt_path == "last" and folder is not None:
        return Path(str(folder.value()))
    return resolve_run(str(ckpt_path), LAST)


def code_overrides(overrides: Iterable[str]) -> list[str]:
    """The overrides that name code to run, which are never taken over from a run folder."""
    return [override for override in overrides if "_target_" in override]


def _overrides(arguments: Sequence[str]) -> list[Override]:
    """The arguments that are valid overrides."""
    overrides = []
    for argument in arguments:
        if not argument.startswith("-"):
            try:
                overrides += OverridesParser.create().parse_overrides([argument])
            except HydraException:
                continue  # the value of an option, or a mistake that Hydra will report
    return overrides


def _read(file: Path) -> list[Override]:
    lines: Any = OmegaConf.to_container(OmegaConf.load(file))
    try:
        overrides: list[Override] = OverridesParser.create().parse_overrides(list(lines or []))
    except (HydraException, TypeError, ValueError) as error:
        raise UserError(f"{file} can't be read: {error}") from error
    return overrides


def _is_run_specific(setting: Override) -> bool:
    key = setting.key_or_group.replace("/", ".")
    return key.partition(".")[0] in RUN_SPECIFIC


def _is_replaced(setting: Override, new_by_key: dict[str, Override]) -> bool:
    """Whether a given override replaces this one, rather than changing a setting that it adds."""
    new = new_by_key.get(setting.key_or_group)
    return new is not None and (new.is_add() or not setting.is_add())


def _resolve_path(setting: Override, cwd: str | None) -> str:
    """An override with a path as it was meant in the earlier command's working directory.

    A relative path refers to that directory if it exists there, or else to the current one.
    """
    line, key, path = str(setting.input_line), setting.get_key_element(), setting.value()
    if cwd is None or Path(cwd) == Path.cwd() or not is_path(key.lstrip("+")):
        return line
    from_cwd = Path(cwd) / Path(str(path)).expanduser()
    return format_override(key, from_cwd) if from_cwd.exists() else line


def _runtime(file: Path) -> Mapping[str, Any]:
    """Hydra's record of the earlier command: its working directory and folders of options."""
    hydra: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    runtime: Mapping[str, Any] = hydra.get("hydra", {}).get("runtime", {})
    return runtime


def _config_dir_arguments(runtime: Mapping[str, Any]) -> list[str]:
    """The earlier command's own folder of options, as arguments; empty for none."""
    for source in runtime.get("config_sources", []):
        # --config-dir, and the config_dir of genre_lightning.train.
        if source["provider"] in ("command-line", "hydra.searchpath in command-line"):
            return ["--config-dir", str(source["path"])]
    return []
