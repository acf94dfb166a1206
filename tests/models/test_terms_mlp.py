"""The sparse title layer, against the equivalent dense one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from genre_lightning.models.terms_mlp import TermsMLP


def sparse(dense: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
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


def dense_twin(model: TermsMLP) -> nn.Sequential:
    first = nn.Linear(50, 16, bias=False)
    with torch.no_grad():
        first.weight.copy_(model.embed.weight.T)
    return nn.Sequential(first, model.norm, nn.ReLU(), model.drop, model.head)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_logits_equal_those_of_the_dense_layers(titles: torch.Tensor, training: bool) -> None:
    model = TermsMLP(3, vocabulary_size=50, hidden=16, dropout=0.0).train(training)
    torch.testing.assert_close(model(*sparse(titles)), dense_twin(model)(titles))


def test_gradient_equals_that_of_the_dense_layer(titles: torch.Tensor) -> None:
    model = TermsMLP(3, vocabulary_size=50, hidden=16, dropout=0.0)
    twin = dense_twin(model)
    model(*sparse(titles)).square().sum().backward()
    sparse_gradient = model.embed.weight.grad
    twin(titles).square().sum().backward()
    assert sparse_gradient is not None and twin[0].weight.grad is not None
    torch.testing.assert_close(sparse_gradient, twin[0].weight.grad.T, rtol=1e-4, atol=1e-6)


def test_autocast_takes_float32_weights(titles: torch.Tensor) -> None:
    model = TermsMLP(3, vocabulary_size=50, hidden=16).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(*sparse(titles))
    torch.testing.assert_close(logits.float(), model(*sparse(titles)), rtol=0.05, atol=0.05)
