"""BatchNorm where a batch may have a single row."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def batch_norm(norm: nn.BatchNorm1d, rows: Tensor) -> Tensor:
    """Normalise (P, D) rows; a single one by the running statistics, in training too.

    The variance of one number is nothing to divide by. A part of a batch has one row where only
    one of its movies has the column.
    """
    if norm.training and len(rows) == 1:
        return F.batch_norm(
            rows, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
        )
    normalised: Tensor = norm(rows)
    return normalised
