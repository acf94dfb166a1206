"""BatchNorm where a batch may have a single row."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from genre_lightning.errors import SettingError


def check_batch_size(branches: nn.ModuleDict, batch_size: int) -> None:
    """Refuse to train BatchNorm of vectors on single movies, whose statistics it would never learn.

    Raises:
        SettingError: naming the branches that have one.
    """
    normed = [
        name
        for name, branch in branches.items()
        if any(isinstance(module, nn.BatchNorm1d) for module in branch.modules())
    ]
    if batch_size == 1 and normed:
        raise SettingError(
            f"data.batch_size=1: the BatchNorm of {', '.join(normed)} needs at least 2 movies in a "
            "batch"
        )


def batch_norm(norm: nn.BatchNorm1d, rows: Tensor) -> Tensor:
    """Normalise (P, D) rows; a single one by the running statistics, in training too.

    The variance of one number is nothing to divide by. A part of a batch has one row where only
    one of its movies has the column.
    """
    if norm.training and len(rows) == 1:
        return _as_before(norm, rows)
    normalised: Tensor = norm(rows)
    return normalised


@final
class PixelNorm(nn.BatchNorm2d):
    """BatchNorm of (P, C, H, W); a single pixel by the running statistics, in training too.

    The last layers may see one pixel of each poster, and a part of a batch has one poster where
    only one of its movies has any.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == input.shape[1]:
            return _as_before(self, input)
        return super().forward(input)


def _as_before(norm: _BatchNorm, values: Tensor) -> Tensor:
    return F.batch_norm(
        values, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
    )
