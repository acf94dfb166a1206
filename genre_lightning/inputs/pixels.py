"""Posters as pixels, for a network that is trained on them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genre_lightning.inputs.augment import PosterAugment, normalise_posters
from genre_lightning.inputs.colours import Colours
from genre_lightning.inputs.decode import PosterError, decode_poster
from genre_lightning.inputs.input import Features, Input, Store, check_keys
from genre_lightning.inputs.part import Numbers
from genre_lightning.inputs.poster_cache import open_poster_cache
from genre_lightning.movies.movie import URL_PATTERN

#: Minimum and maximum height and width of decoded posters.
SIZES = (8, 4096)


def read_poster(value: Any, size: tuple[int, int], shrink: int = 1) -> np.ndarray:
    """Read a user's poster: a path, an encoded or open image, or decoded pixels.

    Args:
        value: the poster. Pixels are (H, W, 3) uint8 RGB.
        size: (H, W) to decode to.
        shrink: as for :func:`genre_lightning.inputs.decode.decode_poster`.

    Returns: (H // shrink, W // shrink, 3) uint8 RGB. Pixels that have this shape are not changed.

    Raises:
        PosterError: the poster can't be read; the message is the reason.
        TypeError: the value is not a poster.
    """
    if isinstance(value, np.ndarray):
        if value.ndim != 3 or value.shape[2] != 3 or value.dtype != np.uint8:
            raise TypeError(f"a {value.shape} array of {value.dtype}, not (H, W, 3) of uint8")
        if 0 in value.shape:
            raise PosterError("it has no pixels")
        if value.shape[:2] == (size[0] // shrink, size[1] // shrink):
            return value
        value = Image.fromarray(value)
    elif isinstance(value, (str, os.PathLike)):
        value = Path(value)
    elif not isinstance(value, (bytes, Image.Image)):
        raise TypeError(f"of type {type(value).__name__}, not a path, bytes or an image")
    elif isinstance(value, Image.Image) and 0 in value.size:
        raise PosterError("it has no pixels")
    try:
        return decode_poster(value, size, shrink)
    except PosterError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, FileNotFoundError):
            of_the_web = URL_PATTERN.search(str(value))
            reason = "a web address, which is not fetched" if of_the_web else "no such file"
        raise PosterError(f"can't be read ({reason})") from error


@final
class PixelsInput(Input):
    """Posters as normalised pixels, augmented in training.

    The numbers are ``pixels``: (P, H, W, 3) uint8 as stored, (P, 3, h, w) float32 as prepared.

    Args:
        column: name of the column.
        size: H = W to which posters are decoded and squashed, or [H, W].
        pool: side of the squares of pixels that are averaged before the network, 1 or an even
            number. Decoding averages squares of ``pool // 2``, which keeps the cache small, and the
            device the remaining factor of 2, so that a random crop still has more pixels than the
            result.
        augment: ``flip``, ``crop`` and ``aspect`` of
            :class:`genre_lightning.inputs.augment.PosterAugment`, for training; None for no
            augmentation.
        mean: mean of R, G and B in 0..1 for normalising; None for ImageNet's.
        std: standard deviation of R, G and B in 0..1; None for ImageNet's.

    Raises:
        ValueError: naming the argument that is out of range.
    """

    kind: ClassVar[str] = "pixels"
    gives: ClassVar[str] = "pixels"
    of: str = "poster"

    def __init__(
        self,
        column: str = "poster",
        size: int | Sequence[int] = 256,
        pool: int = 1,
        augment: Mapping[str, float] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.column = column
        self.size = _size(size)
        if type(pool) is not int or not 1 <= pool <= min(self.size) or (pool > 1 and pool % 2):
            raise ValueError(
                f"pool: {pool!r:.100} is neither 1 nor an even number up to {min(self.size)}, "
                "the size"
            )
        self.pool = pool
        self.colours = _colours(mean, std)
        self.augment: PosterAugment | None = None
        if augment is not None:
            unknown = sorted(set(augment) - {"flip", "crop", "aspect"})
            if unknown:
                raise ValueError(f"augment: {unknown[0]!r} is none of flip, crop, aspect")
            self.augment = PosterAugment(**augment, colours=self.colours)

    @property
    def shrink(self) -> int:
        """The factor of ``pool`` that is averaged on decoding."""
        return 1 if self.pool == 1 else self.pool // 2

    @property
    def rest(self) -> int:
        """The factor of ``pool`` that is averaged on the device."""
        return self.pool // self.shrink

    @property
    def fitted(self) -> bool:
        return True

    def network_arguments(self) -> dict[str, Any]:
        height, width = (side // self.shrink // self.rest for side in self.size)
        return {"size": [height, width]}

    def bytes_per_movie(self) -> int:
        height, width = self.network_arguments()["size"]
        return 3 * 4 * int(height) * int(width)

    def open(self, values: Sequence[Any], train: np.ndarray, store: Store) -> Features:
        return open_poster_cache(values, size=self.size, shrink=self.shrink, store=store)

    def read(self, value: Any) -> np.ndarray:
        return read_poster(value, self.size, self.shrink)

    def encode(self, items: Sequence[np.ndarray]) -> dict[str, Tensor]:
        height, width = (side // self.shrink for side in self.size)
        pixels = np.stack(items) if items else np.zeros((0, height, width, 3), dtype=np.uint8)
        return {"pixels": torch.from_numpy(pixels)}

    def prepare(self, numbers: Numbers, seeds: Sequence[tuple[int, int]] | None) -> Numbers:
        pixels = numbers["pixels"].permute(0, 3, 1, 2)
        if seeds is None or self.augment is None or len(pixels) == 0:
            return {"pixels": normalise_posters(pixels, self.rest, self.colours)}
        generators = [
            (number, torch.Generator(device=pixels.device).manual_seed(seed))
            for number, seed in seeds
        ]
        return {"pixels": self.augment(pixels, generators, self.rest)}

    def state(self) -> dict[str, Any]:
        return {
            "column": self.column,
            "size": list(self.size),
            "pool": self.pool,
            "mean": list(self.colours.mean),
            "std": list(self.colours.std),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> PixelsInput:
        check_keys(state, ("column", "size", "pool", "mean", "std"))
        for name in ("size", "mean", "std"):
            if type(state[name]) is not list:
                raise ValueError(f"{name}: {state[name]!r:.100} is no list")
        return cls(**state)


def _size(size: int | Sequence[int]) -> tuple[int, int]:
    sides = [size, size] if isinstance(size, int) else size
    if (
        not isinstance(sides, (list, tuple))
        or len(sides) != 2
        or not all(type(side) is int and SIZES[0] <= side <= SIZES[1] for side in sides)
    ):
        raise ValueError(f"size: {size!r:.100} is not one or two numbers in {SIZES[0]}..{SIZES[1]}")
    return sides[0], sides[1]


def _colours(mean: Sequence[float] | None, std: Sequence[float] | None) -> Colours:
    given = {name: value for name, value in (("mean", mean), ("std", std)) if value is not None}
    for name, value in given.items():
        if (
            not isinstance(value, (list, tuple))
            or len(value) != 3
            or not all(type(number) is float and 0 <= number <= 1 for number in value)
            or (name == "std" and min(value) <= 0)
        ):
            raise ValueError(f"{name}: {value!r:.100} is not three numbers in 0..1")
    return Colours(**{name: tuple(value) for name, value in given.items()})
