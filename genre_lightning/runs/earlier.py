"""The configuration of a run that is resumed: no override of its has to be given again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from genre_lightning.errors import UserError
from genre_lightning.runs.ckpt_path import CONFIG_FOLDER, LAST, resolve_run
from genre_lightning.runs.quoting import override
from genre_lightning.runs.settings import is_path

#: Say where a run is and what it is part of, not what it trains.
OF_THE_RUN = ("ckpt_path", "hydra", "sweep")


def with_earlier_overrides(arguments: Sequence[str]) -> list[str]:
    """Arguments of train.py, with the overrides of the run whose folder ``ckpt_path`` means.

    They come first, so that those that are given now change them. A file is only where a run
    begins, whatever folder it is in. A sweep takes nothing over.

    Args:
        arguments: of the command, paths quoted.

    Raises:
        UserError: no run is meant; or what is written of it can't be taken over.
    """
    if not any(argument.startswith("ckpt_path=") for argument in arguments):
        return list(arguments)
    given = {setting.key_or_group: setting for setting in _overrides(arguments)}
    chosen = given.get("ckpt_path")
    if chosen is None or {"-m", "--multirun"} & set(arguments):
        return list(arguments)
    ckpt_path, folder = chosen.value(), given.get("hydra.run.dir")
    if ckpt_path is None:
        return list(arguments)
    if ckpt_path == "last" and folder is not None:
        run: Path | None = Path(str(folder.value()))
    else:
        run = resolve_run(str(ckpt_path), LAST)
    written = None if run is None else run / CONFIG_FOLDER / "overrides.yaml"
    if written is None or not written.is_file():
        return list(arguments)
    runtime = _runtime(written.with_name("hydra.yaml"))
    earlier = [
        _as_there(setting, runtime.get("cwd"))
        for setting in _read(written)
        if not _is_of_the_run(setting) and not _is_replaced(setting, given)
    ]
    options = [] if "--config-dir" in arguments else _own_options(runtime)
    place = arguments.index(str(chosen.input_line))
    return [*options, *arguments[:place], *earlier, *arguments[place:]]


def _overrides(arguments: Sequence[str]) -> list[Override]:
    """Those of the arguments that can be read as overrides."""
    found = []
    for argument in arguments:
        if not argument.startswith("-"):
            try:
                found += OverridesParser.create().parse_overrides([argument])
            except HydraException:
                continue  # the value of an option; or a slip, which Hydra will find
    return found


def _read(written: Path) -> list[Override]:
    lines: Any = OmegaConf.to_container(OmegaConf.load(written))
    try:
        overrides: list[Override] = OverridesParser.create().parse_overrides(list(lines or []))
    except (HydraException, TypeError, ValueError) as error:
        raise UserError(f"{written} can't be read: {error}") from error
    for setting in overrides:
        if "_target_" in str(setting.input_line):
            raise UserError(
                f"{written} names code to run, {setting.input_line}: if you trust it, resume by "
                "the file of the checkpoint and give all overrides"
            )
    return overrides


def _is_of_the_run(setting: Override) -> bool:
    key = setting.key_or_group.replace("/", ".")
    return key.partition(".")[0] in OF_THE_RUN


def _is_replaced(setting: Override, given: dict[str, Override]) -> bool:
    """Whether one that is given now takes its place, and does not only change what it adds."""
    new = given.get(setting.key_or_group)
    return new is not None and (new.is_add() or not setting.is_add())


def _as_there(setting: Override, cwd: str | None) -> str:
    """An override as it was meant in the folder where the earlier command was given.

    Of a relative path that is what lies there; where nothing does any more, what lies here.
    """
    line, key, path = str(setting.input_line), setting.get_key_element(), setting.value()
    if cwd is None or Path(cwd) == Path.cwd() or not is_path(key.lstrip("+")):
        return line
    there = Path(cwd) / Path(str(path)).expanduser()
    return override(key, there) if there.exists() else line


def _runtime(written: Path) -> Mapping[str, Any]:
    """What Hydra wrote of the earlier command: where it was given, and its folders of options."""
    hydra: Any = OmegaConf.to_container(OmegaConf.load(written)) if written.is_file() else {}
    runtime: Mapping[str, Any] = hydra.get("hydra", {}).get("runtime", {})
    return runtime


def _own_options(runtime: Mapping[str, Any]) -> list[str]:
    """The folder of options that the earlier command named, if it did."""
    for source in runtime.get("config_sources", []):
        # --config-dir, and what genre_lightning.train makes of its own.
        if source["provider"] in ("command-line", "hydra.searchpath in command-line"):
            return ["--config-dir", str(source["path"])]
    return []
