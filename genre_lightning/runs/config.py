"""The configuration files in a run folder: the composed configuration, and the overrides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from genre_lightning.files import remove_unfinished, whole_file
from genre_lightning.runs.ckpt_path import CONFIG_FOLDER, LAST
from genre_lightning.runs.naming import key_of, read_overrides
from genre_lightning.runs.settings import changes_no_result, flat_settings, may_change_on_resume


def write_config(cfg: DictConfig, folder: Path) -> None:
    """Write the three configuration files that Hydra would write, under the same names.

    Hydra would write them before the run folder is locked, and could leave incomplete files on a
    full disk.

    Args:
        cfg: the composed configuration, without Hydra's section.
        folder: the run folder.

    Raises:
        FullDiskError: the disk is full.
    """
    config_folder = folder / CONFIG_FOLDER
    config_folder.mkdir(exist_ok=True)
    remove_unfinished(config_folder)
    _write(
        {
            config_folder / "config.yaml": OmegaConf.to_yaml(cfg),
            config_folder / "hydra.yaml": OmegaConf.to_yaml(HydraConfig.instance().cfg),
            config_folder / "overrides.yaml": OmegaConf.to_yaml(HydraConfig.get().overrides.task),
        }
    )


@contextmanager
def recorded_config(cfg: DictConfig, folder: Path) -> Iterator[None]:
    """Write the configuration of the training attempt in the block.

    A run is resumed from these files and its newest checkpoint, which must belong together. So if
    the block fails before it has written a checkpoint, for example because a setting can't be
    changed on resume, the previous attempt's files are restored.
    """
    last, config_folder = folder / LAST, folder / CONFIG_FOLDER
    modified_at = _modified_at(last)
    previous_files = (
        {path: path.read_text("utf-8") for path in config_folder.glob("*.yaml")}
        if modified_at
        else {}
    )
    write_config(cfg, folder)
    try:
        yield
    except BaseException:
        if modified_at == _modified_at(last):
            _write(previous_files)
        raise


def changed_config(
    folder: Path, cfg: DictConfig, earlier: Sequence[str], now: Sequence[str]
) -> list[str]:
    """Settings of a finished run that are different in a configuration composed for it now.

    Left out are settings that change no result, the GPU that a sweep chose, and settings that may
    change on resume if an override explains the difference: the run was then trained for longer.

    Args:
        folder: the run folder.
        cfg: the composed configuration.
        earlier: overrides of the run.
        now: overrides of ``cfg``.

    Returns:
        Texts such as "optimizer.lr (0.1 there, 0.2 here)"; none if the run has no ``config.yaml``.
    """
    file = folder / CONFIG_FOLDER / "config.yaml"
    if not file.is_file():
        return []
    there, here = (_unresolved(config) for config in (OmegaConf.load(file), cfg))
    overridden = {key_of(o).replace("/", ".") for o in read_overrides({*earlier} ^ {*now})}

    def is_explained(name: str) -> bool:
        return may_change_on_resume(name) and any(
            name == key or name.startswith(f"{key}.") for key in overridden
        )

    return [
        f"{name} ({there.get(name, 'not set')} there, {here.get(name, 'not set')} here)"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
        and not (changes_no_result(name) or name == "trainer.devices" or is_explained(name))
    ]


def _unresolved(config: Any) -> dict[str, Any]:
    return flat_settings(cast("dict[str, Any]", OmegaConf.to_container(config)))


def _modified_at(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.is_file() else None


def _write(files: Mapping[Path, str]) -> None:
    for path, text in files.items():
        with whole_file(path) as file:
            file.write(text)
