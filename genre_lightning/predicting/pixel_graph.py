"""Poster pixels in an exported graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genre_lightning.inputs.colours import Colours, normalisation


def describe_pixels(size: tuple[int, int]) -> str:
    """Describe the graph's input of posters of size (H, W)."""
    height, width = size
    return f"(P, {height}, {width}, 3) uint8 RGB, each poster stretched to that size"


def append_black_poster(pixels: Tensor) -> Tensor:
    """(P, H, W, 3) uint8 to (P + 1, 3, H, W) float32, with a black poster appended."""
    blank = torch.zeros_like(pixels[:1].sum(0, keepdim=True, dtype=torch.int64))
    return torch.cat([pixels.float(), blank.float()]).permute(0, 3, 1, 2)


class NormalisePixels(nn.Module):
    """Normalises (P, 3, H, W) float32 pixels in 0..255, with constants that the graph contains."""

    def __init__(self, colours: Colours) -> None:
        super().__init__()
        scale, bias = normalisation(colours)
        self.scale: Tensor
        self.register_buffer("scale", scale.view(3, 1, 1), persistent=False)
        self.bias: Tensor
        self.register_buffer("bias", bias.view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels * self.scale + self.bias
