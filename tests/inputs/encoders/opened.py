"""Encoders, names and texts that several tests share."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from genre_lightning.inputs.encoders.images import ImageEncoder
from genre_lightning.inputs.encoders.opening import open_encoder
from genre_lightning.inputs.encoders.table import ENCODERS
from genre_lightning.inputs.encoders.weights import find_weights

# The extra `pretrained` is part of `dev`: without it these tests fail, they are not skipped.
LITES = ["lite0", "lite2"]
TOWERS = ["clip", "siglip", "dinov2"]
IMAGES = [*LITES, *TOWERS]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_HASH = "0" * 64
TEXTS = ["Heat (1995)", "", "Léon: The Professional (1994)", "  two\nlines ", "映画", "word " * 250]


def image_encoder(name: str) -> ImageEncoder:
    encoder = open_encoder(name, random_weights=name in TOWERS)
    assert isinstance(encoder, ImageEncoder)
    return encoder


def posters(encoder: ImageEncoder, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (count, *encoder.size, 3), dtype=torch.uint8, generator=generator)


def copy_minilm(tmp_path: Path) -> Path:
    return Path(shutil.copytree(find_weights(ENCODERS["minilm"]), tmp_path / "copy"))
