"""Folding of BatchNorm into the preceding convolution: the same function, fewer memory passes.

A frozen BatchNorm scales and shifts each channel, which the convolution's weights can do as well.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

#: timm's Conv2dSame pads as TensorFlow does. Other types can transform their weights before use.
_CONVOLUTIONS = ("Conv2d", "Conv2dSame")
#: timm's BatchNormAct2d includes dropout and the activation.
_NORMS = ("BatchNorm2d", "BatchNormAct2d")
#: Below the relative precision of float16, 2^-11, in which vectors are stored.
_TOLERANCE = 1e-4


def random_posters(size: tuple[int, int]) -> Tensor:
    """Return a fixed random input, (1, 3, H, W) float32, to test a network with."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn((1, 3, *size), generator=generator)


@torch.no_grad()
def fold_batch_norms(module: nn.Module, posters: Tensor) -> nn.Module:
    """Copy a network and fold every BatchNorm that directly follows a convolution.

    Args:
        module: a frozen network in evaluation mode; not changed.
        posters: (P, 3, H, W) float32 to test the network and its copy with.

    Returns: the copy; the network itself if nothing can be folded, or if the copy's vectors differ
        by more than rounding.
    """
    if not any(type(layer).__name__ in _NORMS for layer in module.modules()):
        return module  # avoids copying a transformer, which takes time and memory
    folded = copy.deepcopy(module)
    pairs = _conv_norm_pairs(folded, posters)
    if not pairs:
        return module
    for convolution, name in pairs:
        norm: Any = folded.get_submodule(name)
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        remaining = [norm.drop, norm.act] if type(norm).__name__ == "BatchNormAct2d" else []
        parent, _, attribute = name.rpartition(".")
        setattr(folded.get_submodule(parent), attribute, nn.Sequential(*remaining))
    folded = folded.requires_grad_(False).to(memory_format=torch.channels_last)
    expected, actual = module(posters), folded(posters)
    scale = float(expected.abs().max())
    if not torch.allclose(actual, expected, rtol=_TOLERANCE, atol=_TOLERANCE * scale):
        return module
    return folded


def _conv_norm_pairs(module: nn.Module, posters: Tensor) -> list[tuple[nn.Conv2d, str]]:
    """Return convolutions with the name of the BatchNorm that follows, if both are used once."""
    outputs: dict[int, tuple[Any, Tensor]] = {}
    pairs: list[tuple[Any, str]] = []
    uses: dict[nn.Module, int] = {}

    def after_convolution(layer: nn.Module, _: Any, output: Tensor) -> None:
        uses[layer] = uses.get(layer, 0) + 1
        outputs[id(output)] = (layer, output)  # keeps the tensor alive, so that its id stays unique

    def before_norm(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        uses[layer] = uses.get(layer, 0) + 1
        if id(inputs[0]) in outputs:
            pairs.append((outputs[id(inputs[0])][0], names[layer]))

    names = {layer: name for name, layer in module.named_modules()}
    hooks = []
    for layer in names:
        if type(layer).__name__ in _CONVOLUTIONS:
            hooks.append(layer.register_forward_hook(after_convolution))
        elif type(layer).__name__ in _NORMS:
            hooks.append(layer.register_forward_pre_hook(before_norm))
    try:
        module(posters)
    finally:
        for hook in hooks:
            hook.remove()
    convolutions = [convolution for convolution, _ in pairs]
    return [
        (convolution, name)
        for convolution, name in pairs
        if uses[convolution] == uses[module.get_submodule(name)] == 1
        and convolutions.count(convolution) == 1
    ]
