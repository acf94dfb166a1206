"""Parameter groups: the parameters of each branch, with their learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from genre_lightning.errors import UserError


def parameter_groups(
    branches: Mapping[str, nn.Module],
    *,
    lr: float,
    weight_decay: float,
    lr_scales: Mapping[str, float],
    decay_scales: Mapping[str, float] | None = None,
    decay_vectors: bool = False,
) -> list[dict[str, Any]]:
    """Group each branch's matrices and vectors, with scaled learning rate and weight decay.

    Args:
        branches: in the order in which the optimizer's state is stored.
        lr: the optimizer's learning rate.
        weight_decay: the optimizer's weight decay.
        lr_scales: by branch, factor of the learning rate; 0 for a branch that is not trained. A
            network's method ``lr_scales`` can add factors by parameter, such as smaller ones for
            its first layers.
        decay_scales: by branch, factor of weight decay. None divides weight decay by the factor of
            the learning rate, so that its effect in a step stays the same.
        decay_vectors: apply weight decay to biases and BatchNorm as well.
    """
    groups = []
    for name, branch in branches.items():
        find_scales = getattr(branch, "lr_scales", None)
        scales = find_scales() if callable(find_scales) else {}
        named = list(branch.named_parameters())
        for factor in dict.fromkeys(scales.get(key, 1.0) for key, _ in named):
            scale = lr_scales[name] * factor
            for vectors in (False, True):
                parameters = [
                    parameter
                    for key, parameter in named
                    if scales.get(key, 1.0) == factor and (parameter.ndim <= 1) == vectors
                ]
                decay = 0.0 if vectors and not decay_vectors else weight_decay
                if decay_scales is not None:
                    decay *= decay_scales[name]
                elif scale:
                    decay /= scale
                groups.append(
                    {
                        "params": parameters,
                        "lr": lr * scale,
                        "weight_decay": decay if scale else 0.0,
                    }
                )
    return groups


def check_scales(key: str, scales: Mapping[str, Any], branches: list[str]) -> None:
    """Refuse scales that are not numbers from 0 to 1e6, or that name an unknown branch.

    Raises:
        UserError: naming the branch and its setting ``key``.
    """
    for name, scale in scales.items():
        if name not in branches:
            raise UserError(f"{key} of {name}: the model only has {', '.join(branches)}")
        if not isinstance(scale, (int, float)) or not 0 <= scale <= 1e6:
            raise UserError(f"model.branches.{name}.{key}={scale} is not a number from 0 to 1e6")
