"""Folding BatchNorms into convolutions keeps the outputs, and is done only where it is valid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genre_lightning.inputs.encoders.folding import fold_batch_norms


class SharedConvolution(nn.Module):
    """A convolution whose output is also used before its BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x)
        return (self.norm(features) + features).mean((2, 3))


def randomise(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            nn.init.uniform_(layer.running_mean, -2, 2)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.uniform_(layer.bias, -2, 2)
    return module.eval().requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
def test_folding_keeps_the_outputs(bias: bool):
    torch.manual_seed(0)
    module = randomise(
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    )
    posters = torch.randn(2, 3, 8, 6)
    expected = module(posters)
    folded = fold_batch_norms(module, posters[:1])
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    np.testing.assert_allclose(folded(posters), expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(module(posters), expected)


@pytest.mark.parametrize(
    "module",
    [SharedConvolution(), nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3))],
    ids=["output used twice", "norm before convolution"],
)
def test_module_that_can_not_be_folded_is_returned_unchanged(module: nn.Module):
    module = randomise(module)
    assert fold_batch_norms(module, torch.randn(1, 3, 8, 6)) is module
