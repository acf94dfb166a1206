"""Normalisation and augmentation of posters, a whole batch at once, on the batch's device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genre_lightning.inputs.colours import IMAGENET, Colours, normalisation

#: One generator for all posters; None for the device's default; or (number of posters, generator)
#: for one batch after another.
Generators: TypeAlias = torch.Generator | Sequence[tuple[int, torch.Generator | None]] | None

#: Random numbers drawn per poster: more than are used, so that adding a change leaves the draws of
#: the existing ones as they are.
_NUM_DRAWS = 12

#: Pixels that go through all operations together on a CPU: few enough to stay in its cache, and
#: enough for the work to outweigh the overhead of the calls.
_CHUNK_PIXELS = 2**17


def normalise_posters(posters: Tensor, pool: int = 1, colours: Colours = IMAGENET) -> Tensor:
    """Normalise posters for a network: (x / 255 - mean) / std.

    Args:
        posters: (P, 3, H, W) uint8.
        pool: side of the squares of pixels that are averaged; incomplete squares are dropped.
        colours: mean and standard deviation to normalise with.

    Returns: (P, 3, H // pool, W // pool) float32, channels last in memory where ``posters`` is.
    """
    pixels = _average_pool(posters, pool)
    scale, bias = normalisation(colours, posters.device)
    if pixels.device.type == "cpu" and pixels.is_contiguous(memory_format=torch.channels_last):
        # Rows of W * 3 numbers, since an inner loop over three channels is slow.
        result = torch.empty_like(pixels, dtype=torch.float32)
        result_rows = result.permute(0, 2, 3, 1).flatten(2)
        scale, bias = scale.repeat(pixels.shape[3]), bias.repeat(pixels.shape[3])
        source_rows = pixels.permute(0, 2, 3, 1).flatten(2)
        for part, source in zip(result_rows.split(8), source_rows.split(8), strict=True):
            torch.addcmul(bias, part.copy_(source), scale, out=part)
        return result
    return torch.addcmul(bias.view(3, 1, 1), pixels.float(), scale.view(3, 1, 1))


def _average_pool(posters: Tensor, pool: int) -> Tensor:
    """Average squares of pixels: (P, 3, H // pool, W // pool) float32; unchanged if pool is 1."""
    if pool == 1:
        return posters
    num, _, height, width = posters.shape
    out_height, out_width = height // pool, width // pool
    if num == 0:  # an empty batch can have any height and width, even less than pool
        return posters.new_zeros((0, 3, out_height, out_width), dtype=torch.float32)
    channels_last = posters.is_contiguous(memory_format=torch.channels_last)
    if posters.device.type != "cpu" or not channels_last or pool**2 * 255 >= 2**15:
        return F.avg_pool2d(posters.float(), pool)
    # Several times faster than avg_pool2d: sum whole rows as small integers, then sum neighbouring
    # columns at every offset, and pick every pool-th column at the end.
    rows = posters[:, :, : out_height * pool, : out_width * pool].permute(0, 2, 3, 1)
    lines = rows.reshape(num, out_height, pool, out_width * pool * 3)
    total = lines[:, :, 0].to(torch.int16)
    for line in lines.unbind(2)[1:]:
        total += line
    length = 3 * (out_width * pool - pool + 1)
    run = total[:, :, :length].clone()
    for column in range(1, pool):
        run += total[:, :, 3 * column : 3 * column + length]
    strides = (out_height * length, length, 3 * pool, 1)
    summed = run.as_strided((num, out_height, out_width, 3), strides).to(torch.float32)
    return summed.mul_(1 / pool**2).permute(0, 3, 1, 2)


class PosterAugment(nn.Module):
    """Random changes to posters, drawn independently for each poster, and normalisation.

    In this order: a random part of the poster is stretched to its full size ("random resized crop",
    Szegedy et al. 2014), mirrored left to right, and normalised. With ``pool`` above 1 the result
    is smaller than the poster, and the part is resized to it by plain bilinear interpolation of
    2 x 2 pixels.

    Every poster consumes the same number of random numbers whatever is switched on, so switching
    one change off does not affect the others.

    Args:
        flip: probability of mirroring.
        crop: minimum share of the area to keep; 1 keeps all of it.
        aspect: maximum factor by which the part's width : height varies, either way; 1 for none.
        colours: mean and standard deviation to normalise with.

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
        """Augment and normalise a batch, without waiting for the device.

        Args:
            posters: (P, 3, H, W) uint8.
            generator: on the CPU or on the posters' device; equal states give equal results. For
                several batches in one, each batch's number of posters and generator.
            pool: as for :func:`normalise_posters`, 1 or 2.

        Returns: (P, 3, H // pool, W // pool) float32, normalised, channels last in memory.

        Raises:
            ValueError: the posters have another shape or type, or pool is neither 1 nor 2.
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
        chunk_size = num if posters.device.type != "cpu" else _CHUNK_PIXELS // (size[1] * size[2])
        chunk_size = max(1, chunk_size)
        for start in range(0, num, chunk_size):
            chunk = slice(start, start + chunk_size)
            result[chunk] = self._apply_draws(posters[chunk], draws.select(chunk), pool)
        return result

    def draw(self, posters: Tensor, generator: Generators = None) -> Draws:
        """Draw the changes of each poster, on the posters' device."""
        _, _, height, width = posters.shape
        if not isinstance(generator, Sequence):
            generator = [(len(posters), generator)]
        drawn = [
            torch.rand(
                num, _NUM_DRAWS, generator=rng, device=posters.device if rng is None else rng.device
            )
            for num, rng in generator
        ]
        u = list(torch.cat(drawn).to(posters.device, non_blocking=True).unbind(1))
        mirrored = u[0] < self.flip
        crop = None
        if self.crop < 1 or self.aspect > 1:
            area = self.crop + u[1] * (1 - self.crop)
            crop = _crop_boxes(area, _aspect_ratio(u[2], self.aspect), u[3], u[4], height, width)
        return Draws(mirrored if self.flip > 0 else None, crop)

    def _apply_draws(self, posters: Tensor, draws: Draws, pool: int) -> Tensor:
        """Apply the changes, in a few operations that don't synchronise with the device."""
        if draws.crop is None:
            pixels = _average_pool(posters, pool).float()
            if draws.mirrored is not None:
                pixels = torch.where(draws.mirrored[:, None, None, None], pixels.flip(3), pixels)
        else:
            pixels = _crop_and_resize(posters, draws.crop, draws.mirrored, pool)
        scale, bias = normalisation(self.colours, pixels.device)
        return torch.addcmul(bias.view(3, 1, 1), pixels, scale.view(3, 1, 1))


@dataclass(frozen=True)
class Draws:
    """The random changes to P posters of height H and width W.

    Attributes:
        mirrored: (P,) bool; None if no poster is mirrored.
        crop: (P, 4) int64, top, left, height and width of the part that is stretched; None if all
            posters stay whole.
    """

    mirrored: Tensor | None
    crop: Tensor | None

    def select(self, index: slice) -> Draws:
        """Select the changes to some of the posters."""
        values = (getattr(self, field.name) for field in fields(self))
        return Draws(*(None if value is None else value[index] for value in values))


def _aspect_ratio(u: Tensor, max_ratio: float) -> Tensor:
    """Map u in 0..1 to a width : height in 1 / max_ratio to max_ratio, evenly in its logarithm."""
    return torch.exp((2 * u - 1) * math.log(max_ratio))


def _crop_boxes(
    area: Tensor, aspect: Tensor, y: Tensor, x: Tensor, height: int, width: int
) -> Tensor:
    """Return boxes with these shares of the area, aspects and positions in 0..1: (P, 4) int64."""
    box_height = (height * (area / aspect).sqrt()).round().clamp(1, height)
    box_width = (width * (area * aspect).sqrt()).round().clamp(1, width)
    top = torch.minimum((y * (height - box_height + 1)).floor(), height - box_height)
    left = torch.minimum((x * (width - box_width + 1)).floor(), width - box_width)
    return torch.stack([top, left, box_height, box_width], dim=1).long()


def _crop_and_resize(posters: Tensor, crop: Tensor, mirrored: Tensor | None, pool: int) -> Tensor:
    """Crop the posters, resize the parts to the size of the result and mirror them: float32.

    Gives the numbers of ``F.interpolate(mode="bilinear")`` on each part.
    """
    num, _, height, width = posters.shape
    top, left, crop_height, crop_width = crop.unbind(1)
    y = _sample_positions(top, crop_height, height, height // pool)
    x = _sample_positions(left, crop_width, width, width // pool)
    if mirrored is not None:
        x = torch.where(mirrored[:, None], x.flip(1), x)
    shape = (num, height // pool, width // pool)
    grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], dim=3)
    return F.grid_sample(posters.float(), grid, padding_mode="border", align_corners=False)


def _sample_positions(start: Tensor, length: Tensor, size: int, out: int) -> Tensor:
    """Return (P, out) float32 positions in -1..1 that spread ``out`` samples over each part.

    ``start``, ``length`` and ``size`` are in pixels of the poster's side.
    """
    step = (length / out)[:, None]
    offsets = (torch.arange(out, device=start.device) + 0.5) * step - 0.5
    offsets = torch.minimum(offsets.clamp(min=0), (length - 1)[:, None])
    return (2 * (start[:, None] + offsets) + 1) / size - 1
