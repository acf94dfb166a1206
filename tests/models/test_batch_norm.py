"""BatchNorm: a single row by the running statistics, several rows as in PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from genre_lightning.models.batch_norm import batch_norm
from genre_lightning.models.poster_resnet import PosterResNet


def make_norm() -> nn.BatchNorm1d:
    norm_layer = nn.BatchNorm1d(3)
    with torch.no_grad():
        norm_layer.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        norm_layer.running_mean.copy_(torch.tensor([0.5, 0.0, -0.5]))  # type: ignore[union-attr]
        norm_layer.running_var.copy_(torch.tensor([4.0, 1.0, 0.25]))  # type: ignore[union-attr]
    return norm_layer


@pytest.mark.parametrize("training", [True, False], ids=["training", "predicting"])
@pytest.mark.parametrize("rows", [2, 5])
def test_several_rows_are_normalised_as_by_pytorch(rows: int, training: bool) -> None:
    values = torch.randn(rows, 3)
    norm, reference = make_norm().train(training), make_norm().train(training)
    assert torch.equal(batch_norm(norm, values), reference(values))
    for a, b in zip(norm.state_dict().values(), reference.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_single_row_is_normalised_by_running_statistics() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    training = make_norm()
    before = {name: value.clone() for name, value in training.state_dict().items()}
    normalised = batch_norm(training, values)
    torch.testing.assert_close(normalised, make_norm().eval()(values))
    normalised.sum().backward()
    assert values.grad is not None and training.weight.grad is not None
    assert all(torch.equal(before[name], value) for name, value in training.state_dict().items())


@pytest.mark.parametrize("side", [8, 16, 32])
def test_a_single_small_poster_can_be_trained_on(side: int) -> None:
    # At 8 x 8, the last stages have a single pixel, so no variance to divide by.
    network = PosterResNet(3, [side, side], widths=[4, 6, 8, 10])
    logits = network(torch.randn(1, 3, side, side))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert all(value.isfinite().all() for value in network.state_dict().values())
