"""A data module of demo movies, whose posters are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genre_lightning.data.datamodule import MovieDataModule
from genre_lightning.inputs.input import Input


def demo_data(folder: Path, inputs: Mapping[str, Input], **options: Any) -> MovieDataModule:
    """A data module of small demo movies; ``options`` are those of the module and its reader."""
    data = MovieDataModule(
        "demo", inputs, cache_dir=folder, root=str(folder), **{"poster_height": 32, **options}
    )
    data.setup()
    return data
