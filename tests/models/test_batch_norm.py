"""BatchNorm: running statistics for a single row, else the same as PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from genre_lightning.models.batch_norm import batch_norm
from genre_lightning.models.poster_resnet import PosterResNet


def norm() -> nn.BatchNorm1d:
    norm_layer = nn.BatchNorm1d(3)
    with torch.no_grad():
        norm_layer.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        norm_layer.running_mean.copy_(torch.tensor([0.5, 0.0, -0.5]))  # type: ignore[union-attr]
        norm_layer.running_var.copy_(torch.tensor([4.0, 1.0, 0.25]))  # type: ignore[union-attr]
    return norm_layer


@pytest.mark.parametrize("training", [True, False], ids=["training", "predicting"])
@pytest.mark.parametrize("rows", [2, 5])
def test_several_rows_are_normalised_as_ever(rows: int, training: bool) -> None:
    values = torch.randn(rows, 3)
    one, other = norm().train(training), norm().train(training)
    assert torch.equal(batch_norm(one, values), other(values))
    for mine, its in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, its)


def test_a_single_row_is_normalised_by_what_was_seen_before() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    training = norm()
    before = {name: value.clone() for name, value in training.state_dict().items()}
    normalised = batch_norm(training, values)
    torch.testing.assert_close(normalised, norm().eval()(values))
    normalised.sum().backward()
    assert values.grad is not None and training.weight.grad is not None
    assert all(torch.equal(before[name], value) for name, value in training.state_dict().items())


@pytest.mark.parametrize("side", [8, 16, 32])
def test_one_small_poster_in_a_batch_trains(side: int) -> None:
    # Of 8 x 8 the last stages see a single pixel, whose variance is nothing to divide by.
    network = PosterResNet(3, [side, side], widths=[4, 6, 8, 10])
    logits = network(torch.randn(1, 3, side, side))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert all(value.isfinite().all() for value in network.state_dict().values())
