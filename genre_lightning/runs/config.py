"""The configuration of a run, in its folder: what was composed, and what was asked for."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from genre_lightning.files import remove_unfinished, whole_file
from genre_lightning.runs.places import CONFIG_FOLDER


def write_config(cfg: DictConfig, folder: Path) -> None:
    """Write the three files that Hydra writes, under their names.

    Hydra would write them before anybody has looked whether another process is training in the
    folder, and not whole where the disk is full.

    Args:
        cfg: the composed configuration, without Hydra's own.
        folder: the run folder.

    Raises:
        FullDiskError: the disk is full.
    """
    place = folder / CONFIG_FOLDER
    place.mkdir(exist_ok=True)
    remove_unfinished(place)
    for name, content in {
        "config.yaml": cfg,
        "hydra.yaml": HydraConfig.instance().cfg,
        "overrides.yaml": HydraConfig.get().overrides.task,
    }.items():
        with whole_file(place / name) as file:
            file.write(OmegaConf.to_yaml(content))
