"""Drawn movies as data to train on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.inputs.input import Input


def drawn_data(folder: Path, inputs: Mapping[str, Input], **options: Any) -> MovieDataModule:
    """Small demo movies, set up in a folder; options are those of the module and its reader."""
    data = MovieDataModule(
        "demo", inputs, cache_dir=folder, root=str(folder), **{"poster_height": 32, **options}
    )
    data.setup()
    return data
