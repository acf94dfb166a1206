"""The configuration of a run that is resumed: no override of its has to be given again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from genre_lightning.errors import UserError
from genre_lightning.runs.places import LAST, resolve_run

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
    given = {override.key_or_group: override for override in _overrides(arguments)}
    chosen = given.get("ckpt_path")
    if chosen is None or {"-m", "--multirun"} & set(arguments):
        return list(arguments)
    ckpt_path, folder = chosen.value(), given.get("hydra.run.dir")
    if ckpt_path is None:
        return list(arguments)
    run = resolve_run(str(ckpt_path), LAST) if folder is None or ckpt_path != "last" else None
    if folder is not None and ckpt_path == "last":
        run = Path(str(folder.value()))
    written = None if run is None else run / ".hydra" / "overrides.yaml"
    if written is None or not written.is_file():
        return list(arguments)
    earlier = [
        str(override.input_line)
        for override in _read(written)
        if not _is_of_the_run(override) and not _is_replaced(override, given)
    ]
    options = [] if "--config-dir" in arguments else _own_options(written.with_name("hydra.yaml"))
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
    for override in overrides:
        if "_target_" in str(override.input_line):
            raise UserError(
                f"{written} names code to run, {override.input_line}: if you trust it, resume by "
                "the file of the checkpoint and give all overrides"
            )
    return overrides


def _is_of_the_run(override: Override) -> bool:
    key = override.key_or_group.replace("/", ".")
    return key.partition(".")[0] in OF_THE_RUN


def _is_replaced(override: Override, given: dict[str, Override]) -> bool:
    """Whether one that is given now takes its place, and does not only change what it adds."""
    new = given.get(override.key_or_group)
    return new is not None and (new.is_add() or not override.is_add())


def _own_options(written: Path) -> list[str]:
    """The folder of options that the earlier command named, if it did."""
    hydra: Any = OmegaConf.load(written).hydra if written.is_file() else {}
    sources = OmegaConf.select(OmegaConf.create(hydra), "runtime.config_sources") or []
    for source in sources:
        # --config-dir, and what genre_lightning.train makes of its own.
        if source.provider in ("command-line", "hydra.searchpath in command-line"):
            return ["--config-dir", str(source.path)]
    return []
