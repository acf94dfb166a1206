"""The linear network over sparse rows, against dense matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import random as random_sparse

from genre_lightning.models.terms_linear import TermsLinear

P, V, G = 7, 30, 3


def random_rows(seed: int = 0) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """(P, V) dense rows, some of them empty, and the same as the network's sparse arguments."""
    rows = random_sparse(P, V, 0.2, format="csr", rng=np.random.default_rng(seed)).toarray()
    rows[[0, 3, P - 1]] = 0
    positions = [np.flatnonzero(row) for row in rows]
    counts = np.array([len(position) for position in positions])
    numbers = {
        "indices": torch.from_numpy(np.concatenate(positions)),
        "offsets": torch.from_numpy(np.cumsum(counts) - counts),
        "weights": torch.from_numpy(rows[rows != 0]).float(),
    }
    return rows, numbers


def make_network(**kwargs: Any) -> TermsLinear:
    torch.manual_seed(0)
    linear = TermsLinear(G, V, **{"input_dropout": 0.0, **kwargs})
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.normal_()
    return linear


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("members", [1, 3])
def test_against_dense_matrices(members: int, training: bool) -> None:
    dense, numbers = random_rows()
    linear = make_network(members=members).train(training)
    table = linear.embed.weight.detach().double().numpy()
    expected = dense @ table + linear.head.bias.detach().double().numpy()
    expected = expected.reshape(P, members, G).transpose(1, 0, 2)
    actual = linear(**numbers, per_member=training)
    assert actual.shape == ((members, P, G) if training else (P, G))
    np.testing.assert_allclose(
        actual.detach(), expected if training else expected.mean(0), rtol=1e-5, atol=1e-5
    )
    # The gradient equals that of the dense product, too.
    (actual * torch.arange(G)).sum().backward()
    gradient = np.tile(np.arange(G) / (1 if training else members), members)
    expected_gradient = dense.sum(0)[:, None] * gradient
    assert linear.embed.weight.grad is not None
    np.testing.assert_allclose(linear.embed.weight.grad, expected_gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("members", [1, 2])
def test_no_rows_or_empty_rows(members: int) -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    linear = make_network(members=members)
    for training in (False, True):
        logits = linear.train(training)(empty, empty, torch.zeros(0), per_member=training)
        assert logits.shape[-2:] == (0, G)
        logits = linear(
            empty, torch.zeros(2, dtype=torch.int64), torch.zeros(0), per_member=training
        )
        bias = linear.head.bias.view(members, 1, G)
        torch.testing.assert_close(
            logits if training else logits[None],
            (bias if training else bias.mean(0, keepdim=True)).expand(-1, 2, -1),
        )


def test_each_member_drops_its_own_terms_in_training() -> None:
    linear = TermsLinear(G, V, input_dropout=0.5, members=2)
    with torch.no_grad():
        linear.embed.weight.fill_(1.0)
    _, numbers = random_rows()
    numbers["weights"] = torch.ones_like(numbers["weights"])
    torch.manual_seed(0)
    first, second = linear.train()(**numbers, per_member=True)
    assert not torch.equal(first, second)
    # Kept terms count double, so the sums are even.
    assert not (first % 2).any() and not (second % 2).any()
    assert torch.equal(linear.eval()(**numbers), linear.eval()(**numbers))


def test_initial_logits_are_zero() -> None:
    _, numbers = random_rows()
    assert not TermsLinear(G, V, members=2).eval()(**numbers).any()
