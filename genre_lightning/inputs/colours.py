"""Constants that normalise the pixels of posters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

#: Mean and standard deviation of ImageNet's RGB channels in 0..1, as the pretrained networks and
#: the original recipe use them.
POSTER_MEAN = (0.485, 0.456, 0.406)
POSTER_STD = (0.229, 0.224, 0.225)

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Colours:
    """Mean and standard deviation of R, G and B in 0..1 for normalising; ImageNet's by default."""

    mean: tuple[float, ...] = POSTER_MEAN
    std: tuple[float, ...] = POSTER_STD


IMAGENET = Colours()


@lru_cache(maxsize=16)
def normalisation(
    colours: Colours, device: torch.device = _CPU, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return scale and bias, (3,) float32: ``pixels * scale + bias`` normalises pixels of 0..255.

    The constants are cached on the device, since copying them for each batch would synchronise.

    Args:
        colours: mean and standard deviation to normalise with.
        device: where the constants are used.
        dtype: used for computing the constants; another one can change the last digit.
    """
    with torch.inference_mode(False):
        mean, std = (torch.tensor(each, dtype=dtype) for each in (colours.mean, colours.std))
        constants = torch.stack([1 / (255 * std), -mean / std]).float().to(device)
        return constants[0], constants[1]
