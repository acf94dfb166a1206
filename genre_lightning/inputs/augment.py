"""Normalisation and random changes of posters, a whole batch at once, on the batch's device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genre_lightning.inputs.colours import IMAGENET, Colours, normalisation

#: One for all posters; None for the device's default; or (number of posters, generator) of one
#: batch after another.
Generators: TypeAlias = torch.Generator | Sequence[tuple[int, torch.Generator | None]] | None

#: Random numbers drawn for each poster: more than are used, so that a further change, once there is
#: one, leaves the draws of the others as they are.
_DRAWS = 12

#: Pixels that go through all operations together on a CPU: few enough to stay in its cache, enough
#: for the work to outweigh the calls.
_PIXELS = 2**17


def normalise_posters(posters: Tensor, pool: int = 1, colours: Colours = IMAGENET) -> Tensor:
    """Posters as the network takes them: (x / 255 - mean) / std.

    Args:
        posters: (P, 3, H, W) uint8.
        pool: side of the squares of pixels that are averaged; rows and columns that fill none are
            left out.
        colours: what to normalise by.

    Returns: (P, 3, H // pool, W // pool) float32, channels last in memory where ``posters`` is.
    """
    pixels = _pooled(posters, pool)
    scale, bias = normalisation(colours, posters.device)
    if pixels.device.type == "cpu" and pixels.is_contiguous(memory_format=torch.channels_last):
        # A row of W * 3 numbers at a time, since three channels make a slow inner loop.
        result = torch.empty_like(pixels, dtype=torch.float32)
        rows = result.permute(0, 2, 3, 1).flatten(2)
        scale, bias = scale.repeat(pixels.shape[3]), bias.repeat(pixels.shape[3])
        given = pixels.permute(0, 2, 3, 1).flatten(2)
        for part, source in zip(rows.split(8), given.split(8), strict=True):
            torch.addcmul(bias, part.copy_(source), scale, out=part)
        return result
    return torch.addcmul(bias.view(3, 1, 1), pixels.float(), scale.view(3, 1, 1))


def _pooled(posters: Tensor, pool: int) -> Tensor:
    """Squares of pixels averaged: (P, 3, H // pool, W // pool) float32; without, as they are."""
    if pool == 1:
        return posters
    num, _, height, width = posters.shape
    high, wide = height // pool, width // pool
    if num == 0:  # of any size: a batch without posters has them of one pixel
        return posters.new_zeros((0, 3, high, wide), dtype=torch.float32)
    channels_last = posters.is_contiguous(memory_format=torch.channels_last)
    if posters.device.type != "cpu" or not channels_last or pool**2 * 255 >= 2**15:
        return F.avg_pool2d(posters.float(), pool)
    # Several times faster than the general way: whole rows are summed, as small integers, also
    # along themselves, and what is wanted is picked out at the end.
    rows = posters[:, :, : high * pool, : wide * pool].permute(0, 2, 3, 1)
    lines = rows.reshape(num, high, pool, wide * pool * 3)
    total = lines[:, :, 0].to(torch.int16)
    for line in lines.unbind(2)[1:]:
        total += line
    length = 3 * (wide * pool - pool + 1)
    run = total[:, :, :length].clone()
    for column in range(1, pool):
        run += total[:, :, 3 * column : 3 * column + length]
    strides = (high * length, length, 3 * pool, 1)
    summed = run.as_strided((num, high, wide, 3), strides).to(torch.float32)
    return summed.mul_(1 / pool**2).permute(0, 3, 1, 2)


class PosterAugment(nn.Module):
    """Random changes to posters, each poster's drawn on its own, and normalisation.

    In this order: a random part of the poster is stretched to its full size ("random resized crop",
    Szegedy et al. 2014), mirrored left to right, and normalised. Where the result is smaller than
    the poster, ``pool`` pixels a side to one, the part is stretched to it by plain bilinear
    interpolation, which looks at two pixels a side.

    Every poster uses up the same number of random numbers whatever is switched on, so switching
    one change off leaves the others as they were.

    Args:
        flip: probability of mirroring.
        crop: least share of the area to keep; 1 keeps all of it.
        aspect: how far the part's width : height may be stretched, either way; 1 for not at all.
        colours: what to normalise by.

    Raises:
        ValueError: naming the argument that is out of range.
    """

    def __init__(
        self,
        flip: float = 0.5,
        crop: float = 0.7,
        aspect: float = 1.16,
        colours: Colours = IMAGENET,
    ) -> None:
        super().__init__()
        for name, value, low, high in (
            ("flip", flip, 0.0, 1.0),
            ("crop", crop, 0.01, 1.0),
            ("aspect", aspect, 1.0, 4.0),
        ):
            if type(value) not in (int, float) or not low <= value <= high:
                raise ValueError(f"{name}: {value} is not in {low} to {high}")
        self.flip = flip
        self.crop = crop
        self.aspect = aspect
        self.colours = colours

    @torch.no_grad()
    def forward(self, posters: Tensor, generator: Generators = None, pool: int = 1) -> Tensor:
        """Change and normalise a batch; nothing waits for the device.

        Args:
            posters: (P, 3, H, W) uint8.
            generator: equal states give equal results; on the CPU or on the posters' device. For
                several batches in one: each one's own, with the number of its posters.
            pool: as for :func:`normalise_posters`, 1 or 2.

        Returns: (P, 3, H // pool, W // pool) float32, normalised, channels last in memory.

        Raises:
            ValueError: the posters have another shape or type, or pool is neither.
        """
        if posters.dtype != torch.uint8 or posters.ndim != 4 or posters.shape[1] != 3:
            raise ValueError(
                f"posters must be uint8 (P, 3, H, W), not {posters.dtype} {tuple(posters.shape)}"
            )
        if pool not in (1, 2):
            raise ValueError(f"pool must be 1 or 2, not {pool}")
        draws = self.draw(posters, generator)
        num, _, height, width = posters.shape
        size = (num, height // pool, width // pool, 3)
        result = torch.empty(size, device=posters.device).permute(0, 3, 1, 2)
        few = num if posters.device.type != "cpu" else _PIXELS // (size[1] * size[2])
        few = max(1, few)
        for start in range(0, num, few):
            part = slice(start, start + few)
            result[part] = self._changed(posters[part], draws.part(part), pool)
        return result

    def draw(self, posters: Tensor, generator: Generators = None) -> Draws:
        """Draw the changes of each poster, on the posters' device."""
        _, _, height, width = posters.shape
        if not isinstance(generator, Sequence):
            generator = [(len(posters), generator)]
        drawn = [
            torch.rand(
                num, _DRAWS, generator=one, device=posters.device if one is None else one.device
            )
            for num, one in generator
        ]
        u = list(torch.cat(drawn).to(posters.device, non_blocking=True).unbind(1))
        mirrored = u[0] < self.flip
        crop = None
        if self.crop < 1 or self.aspect > 1:
            area = self.crop + u[1] * (1 - self.crop)
            crop = _boxes(area, _stretch(u[2], self.aspect), u[3], u[4], height, width)
        return Draws(mirrored if self.flip > 0 else None, crop)

    def _changed(self, posters: Tensor, draws: Draws, pool: int) -> Tensor:
        """The changes themselves, in a few operations that read nothing back from the device."""
        if draws.crop is None:
            pixels = _pooled(posters, pool).float()
            if draws.mirrored is not None:
                pixels = torch.where(draws.mirrored[:, None, None, None], pixels.flip(3), pixels)
        else:
            pixels = _stretched(posters, draws.crop, draws.mirrored, pool)
        scale, bias = normalisation(self.colours, pixels.device)
        return torch.addcmul(bias.view(3, 1, 1), pixels, scale.view(3, 1, 1))


@dataclass(frozen=True)
class Draws:
    """What happens to each of P posters of height H and width W.

    Attributes:
        mirrored: (P,) bool, or None for no poster.
        crop: (P, 4) int64, top, left, height and width of the part that is stretched, or None.
    """

    mirrored: Tensor | None
    crop: Tensor | None

    def part(self, some: slice) -> Draws:
        """What happens to some of the posters."""
        values = (getattr(self, field.name) for field in fields(self))
        return Draws(*(None if value is None else value[some] for value in values))


def _stretch(u: Tensor, most: float) -> Tensor:
    """Width : height in 1 / most to most, both directions equally likely."""
    return torch.exp((2 * u - 1) * math.log(most))


def _boxes(area: Tensor, aspect: Tensor, y: Tensor, x: Tensor, height: int, width: int) -> Tensor:
    """Rectangles of a share of the area, of an aspect, at a place in 0..1: (P, 4) int64."""
    tall = (height * (area / aspect).sqrt()).round().clamp(1, height)
    wide = (width * (area * aspect).sqrt()).round().clamp(1, width)
    top = torch.minimum((y * (height - tall + 1)).floor(), height - tall)
    left = torch.minimum((x * (width - wide + 1)).floor(), width - wide)
    return torch.stack([top, left, tall, wide], dim=1).long()


def _stretched(posters: Tensor, crop: Tensor, mirrored: Tensor | None, pool: int) -> Tensor:
    """The parts that are kept, mirrored, at the size of the result: float32.

    The numbers of ``F.interpolate(mode="bilinear")`` of each part.
    """
    num, _, height, width = posters.shape
    top, left, tall, wide = crop.unbind(1)
    y = _places(top, tall, height, height // pool)
    x = _places(left, wide, width, width // pool)
    if mirrored is not None:
        x = torch.where(mirrored[:, None], x.flip(1), x)
    shape = (num, height // pool, width // pool)
    grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], dim=3)
    return F.grid_sample(posters.float(), grid, padding_mode="border", align_corners=False)


def _places(start: Tensor, length: Tensor, size: int, out: int) -> Tensor:
    """Where each of ``out`` pixels lies in a part of ``size``, from -1 to 1: (P, out) float32."""
    step = (length / out)[:, None]
    inside = (torch.arange(out, device=start.device) + 0.5) * step - 0.5
    inside = torch.minimum(inside.clamp(min=0), (length - 1)[:, None])
    return (2 * (start[:, None] + inside) + 1) / size - 1
