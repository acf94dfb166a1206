"""Learning-rate schedules, counted in optimizer steps."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine_factor(
    step: int, total_steps: int, warmup_fraction: float, final_fraction: float
) -> float:
    """Share of the peak learning rate at ``step``.

    A linear rise, then half a cosine (Loshchilov and Hutter 2017) down to ``final_fraction``, where
    it stays.
    """
    warmup = max(1, round(warmup_fraction * total_steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine(
    optimizer: Optimizer,
    total_steps: int,
    warmup_fraction: float = 0.1,
    final_fraction: float = 0.0,
) -> LambdaLR:
    """The schedule of :func:`warmup_cosine_factor` for every parameter group of ``optimizer``.

    Args:
        optimizer: its learning rates are the peaks.
        total_steps: optimizer steps of the whole training.
        warmup_fraction: share of them that rise, in [0, 1].
        final_fraction: share of the peak that is left at the end, in [0, 1].
    """

    def factor(step: int) -> float:
        return warmup_cosine_factor(step, total_steps, warmup_fraction, final_fraction)

    return LambdaLR(optimizer, factor)


def constant(optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """The optimizer's own learning rate at every step."""
    return LambdaLR(optimizer, lambda step: 1.0)
