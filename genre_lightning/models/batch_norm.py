"""BatchNorm for batches that can have a single row."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from genre_lightning.errors import SettingError


def check_batch_size(branches: nn.ModuleDict, batch_size: int) -> None:
    """Refuse batches of one movie, from which ``BatchNorm1d`` would never learn its statistics.

    Raises:
        SettingError: naming the branches that have a ``BatchNorm1d``.
    """
    with_batch_norm = [
        name
        for name, branch in branches.items()
        if any(isinstance(module, nn.BatchNorm1d) for module in branch.modules())
    ]
    if batch_size == 1 and with_batch_norm:
        raise SettingError(
            f"data.batch_size=1: the BatchNorm of {', '.join(with_batch_norm)} needs at least 2 "
            "movies in a batch"
        )


def batch_norm(norm: nn.BatchNorm1d, rows: Tensor) -> Tensor:
    """Normalise (P, D) rows; a single row by the running statistics, even in training.

    A single row has no variance to divide by. A part has one row when only one movie of the batch
    has the column.
    """
    if norm.training and len(rows) == 1:
        return _normalize_by_running_statistics(norm, rows)
    normalised: Tensor = norm(rows)
    return normalised


@final
class PixelNorm(nn.BatchNorm2d):
    """BatchNorm of (P, C, H, W); a single pixel by the running statistics, even in training.

    The last layers can have one pixel per poster, and a part has one poster when only one movie of
    the batch has a poster.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == input.shape[1]:
            return _normalize_by_running_statistics(self, input)
        return super().forward(input)


def _normalize_by_running_statistics(norm: _BatchNorm, values: Tensor) -> Tensor:
    return F.batch_norm(
        values, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
    )
