"""Heat maps as pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from genre_lightning.explain.explainer import ImageExplanation
from genre_lightning.inputs.decode import upright_size
from genre_lightning.inputs.input import Value
from genre_lightning.inputs.pixels import read_poster

#: Evenly spaced colours of a heat map from cold to hot: matplotlib's "inferno", which is
#: perceptually uniform and readable for colour-blind people.
_INFERNO = np.array(
    [
        (0, 0, 4),
        (40, 11, 84),
        (101, 21, 110),
        (159, 42, 99),
        (212, 72, 66),
        (245, 125, 21),
        (250, 193, 39),
        (252, 255, 164),
    ],
    dtype=np.float32,
)
#: Opacity of the colours where the map is hottest.
_MAX_OPACITY = 0.65


def heat_pictures(
    explanation: ImageExplanation, genres: Sequence[int], side: int = 512
) -> list[Image.Image]:
    """Overlay the heat maps of K genres on an image, in its original proportions.

    Args:
        explanation: of the image.
        genres: indices of K genres in the model's genres.
        side: longer side of the pictures in pixels.

    Returns:
        K RGB pictures.

    Raises:
        InputError: the image can't be read.
        IndexError: a genre does not exist.
    """
    return overlay_maps(explanation.image, explanation.heat_maps(genres), side)


def overlay_maps(image: Value, maps: np.ndarray, side: int = 512) -> list[Image.Image]:
    """Overlay K computed heat maps on an image, as :func:`heat_pictures` does.

    Args:
        image: as given to the model.
        maps: (K, H, W) float32 in [0, 1], over the whole image.
        side: longer side of the pictures in pixels.
    """
    width, height = upright_dimensions(image)
    scale = side / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    poster = read_poster(image, (side, side))
    return [overlay_resized(poster, heat, size) for heat in maps]


def overlay_resized(image: np.ndarray, heat: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Overlay a heat map on a distorted image, and restore the proportions of the original.

    Args:
        image: (H, W, 3) uint8 RGB, the whole image.
        heat: (h, w) float32 in [0, 1], also over the whole image.
        size: width and height of the picture to return.
    """
    height, width = image.shape[:2]
    resized = Image.fromarray(heat).resize((width, height), Image.Resampling.BILINEAR)
    return overlay(image, np.asarray(resized)).resize(size, Image.Resampling.LANCZOS)


def overlay(image: np.ndarray, heat: np.ndarray) -> Image.Image:
    """Overlay a heat map on an image, which is dim gray where the map is cold.

    Args:
        image: (H, W, 3) uint8 RGB.
        heat: (H, W) in [0, 1], one map of :class:`ImageExplanation`.

    Raises:
        ValueError: the image and the map differ in size.
    """
    if heat.shape != image.shape[:2]:
        raise ValueError(f"a heat map of {heat.shape} for an image of {image.shape[:2]}")
    position = np.clip(heat, 0.0, 1.0) * (len(_INFERNO) - 1)
    steps = np.arange(len(_INFERNO))
    colours = np.stack([np.interp(position, steps, _INFERNO[:, c]) for c in range(3)], axis=-1)
    pixels = image.astype(np.float32)
    gray = pixels @ np.array((0.299, 0.587, 0.114), dtype=np.float32)
    share = np.clip(heat, 0.0, 1.0)[..., None]
    base = 0.75 * gray[..., None] * (1 - share) + pixels * share
    alpha = _MAX_OPACITY * (0.25 + 0.75 * share)
    mixed = base * (1 - alpha) + colours * alpha
    return Image.fromarray(np.clip(np.round(mixed), 0, 255).astype(np.uint8))


def upright_dimensions(image: Value) -> tuple[int, int]:
    """Width and height of an upright image, given as for :func:`read_poster` and readable."""
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[0]
    return upright_size(Path(image) if isinstance(image, (str, os.PathLike)) else image)
