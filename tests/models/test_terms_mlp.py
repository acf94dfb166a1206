"""The MLP over sparse rows, against the equivalent dense layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from genre_lightning.models.terms_mlp import TermsMLP


def to_sparse(dense: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, columns = dense.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(dense))
    offsets = torch.cumsum(counts, 0) - counts
    return columns, offsets, dense[rows, columns]


@pytest.fixture
def titles() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(7, 50, generator=generator)
    dense[torch.rand(7, 50, generator=generator) < 0.8] = 0
    dense[3] = 0  # a title without any known term
    return dense


def dense_layers(model: TermsMLP) -> nn.Sequential:
    first = nn.Linear(50, 16, bias=False)
    with torch.no_grad():
        first.weight.copy_(model.embed.weight.T)
    return nn.Sequential(first, model.norm, nn.ReLU(), model.drop, model.head)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_logits_equal_those_of_the_dense_layers(titles: torch.Tensor, training: bool) -> None:
    model = TermsMLP(3, vocabulary_size=50, hidden=16, dropout=0.0).train(training)
    torch.testing.assert_close(model(*to_sparse(titles)), dense_layers(model)(titles))


def test_gradient_equals_that_of_the_dense_layer(titles: torch.Tensor) -> None:
    model = TermsMLP(3, vocabulary_size=50, hidden=16, dropout=0.0)
    dense = dense_layers(model)
    model(*to_sparse(titles)).square().sum().backward()
    sparse_gradient = model.embed.weight.grad
    dense(titles).square().sum().backward()
    assert sparse_gradient is not None and dense[0].weight.grad is not None
    torch.testing.assert_close(sparse_gradient, dense[0].weight.grad.T, rtol=1e-4, atol=1e-6)


def test_bfloat16_autocast_is_close_to_float32(titles: torch.Tensor) -> None:
    model = TermsMLP(3, vocabulary_size=50, hidden=16).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(*to_sparse(titles))
    torch.testing.assert_close(logits.float(), model(*to_sparse(titles)), rtol=0.05, atol=0.05)
