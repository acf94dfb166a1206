"""A small residual network over RGB posters, trained from scratch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genre_lightning.models.batch_norm import PixelNorm


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a skip connection (He et al. 2016, basic block).

    Args:
        inputs: channels in.
        outputs: channels out.
        stride: stride of the first convolution; the skip matches it by average pooling and a 1x1
            convolution (ResNet-D, He et al. 2019), so that no pixel is dropped.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = PixelNorm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = PixelNorm(outputs)
        # A block starts as the identity, which lets a deep stack train from the first step
        # (Goyal et al. 2017).
        nn.init.zeros_(self.norm2.weight)
        skip: list[nn.Module] = []
        if stride > 1:
            skip.append(nn.AvgPool2d(stride, ceil_mode=True))
        if stride > 1 or inputs != outputs:
            skip += [nn.Conv2d(inputs, outputs, 1, bias=False), PixelNorm(outputs)]
        self.skip = nn.Sequential(*skip)

    def forward(self, x: Tensor) -> Tensor:
        """Map (P, inputs, H, W) to (P, outputs, H / stride, W / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.skip(x))


class PosterResNet(nn.Module):
    """ResNet-style network: a strided stem, stages of residual blocks, pooling, one linear layer.

    Args:
        num_genres: G, the number of logits.
        size: H and W of the posters.
        widths: channels of each stage; each stage after the first halves the resolution.
        blocks: residual blocks in each stage; as many numbers as ``widths``.
        stem_kernel: width of the first convolution's kernel.
        stem_stride: stride of the first convolution.
        first_stride: stride of the first stage.
        dropout: probability of zeroing a pooled channel, in [0, 1).

    Raises:
        ValueError: ``widths`` and ``blocks`` differ in length, or the posters are too small.
    """

    def __init__(
        self,
        num_genres: int,
        size: Sequence[int],
        widths: Sequence[int] = (24, 48, 96, 192),
        blocks: Sequence[int] = (1, 1, 1, 1),
        stem_kernel: int = 3,
        stem_stride: int = 2,
        first_stride: int = 1,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks):
            raise ValueError(f"widths {list(widths)} and blocks {list(blocks)} differ in length")
        padding = max(0, stem_kernel - stem_stride + 1) // 2
        # The stages always leave at least one pixel; the stem might not.
        min_side = max(1, stem_kernel - 2 * padding)
        if len(size) != 2 or min(size) < min_side:
            raise ValueError(
                f"posters of {' x '.join(map(str, size))} pixels are too small: this network "
                f"needs at least {min_side} x {min_side}"
            )
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], stem_kernel, stem_stride, padding, bias=False),
            PixelNorm(widths[0]),
            nn.ReLU(),
        )
        stages: list[nn.Module] = []
        inputs = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for block in range(count):
                stride = (2 if stage > 0 else first_stride) if block == 0 else 1
                stages.append(ResidualBlock(inputs, width, stride))
                inputs = width
        self.stages = nn.Sequential(*stages)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(inputs, num_genres)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels: Tensor) -> Tensor:
        """Score posters.

        Args:
            pixels: (P, 3, H, W) float, normalised per channel.

        Returns:
            (P, G) logits.
        """
        features = self.stages(self.stem(pixels))
        logits: Tensor = self.head(self.drop(torch.mean(features, dim=(2, 3))))
        return logits
