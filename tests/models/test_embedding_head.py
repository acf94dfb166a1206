"""The embedding head, against plain matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from genre_lightning.models.embedding_head import NORMS, EmbeddingHead

P, D, G = 6, 5, 3
VECTORS = torch.from_numpy(np.random.default_rng(0).normal(2.0, 3.0, (P, D))).float()


def make_head(**kwargs: Any) -> EmbeddingHead:
    torch.manual_seed(1)
    network = EmbeddingHead(G, D, **{"input_dropout": 0.0, "dropout": 0.0, **kwargs})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
        if network.norm is not None:
            network.norm.running_mean.copy_(torch.linspace(1, 3, D))  # type: ignore[union-attr]
            network.norm.running_var.copy_(torch.linspace(2, 9, D))  # type: ignore[union-attr]
    return network


def normalised(x: np.ndarray, network: EmbeddingHead, norm: str, training: bool) -> np.ndarray:
    if norm == "none":
        return x
    if norm == "layer":
        return np.asarray((x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5))
    if training:
        mean, variance = x.mean(0), x.var(0)
    else:
        assert network.norm is not None
        mean, variance = network.norm.running_mean.numpy(), network.norm.running_var.numpy()  # type: ignore[union-attr]
    return np.asarray((x - mean) / np.sqrt(variance + 1e-5))


def layer(network: Any, m: int, x: np.ndarray) -> np.ndarray:
    weight = network.weight.detach().double().numpy()[m]
    bias = network.bias.detach().double().numpy().reshape(network.members, -1)[m]
    return np.asarray(x @ weight + bias)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("hidden", [0, 4])
@pytest.mark.parametrize("norm", NORMS)
def test_against_plain_matrices(norm: str, hidden: int, members: int) -> None:
    network = make_head(norm=norm, hidden=hidden, members=members)
    for training in (False, True):
        network.train(training)
        x = normalised(VECTORS.double().numpy(), network, norm, training)
        if not hidden and norm != "none":
            x = x / np.sqrt(x.shape[1])
        expected = []
        for m in range(members):
            rows = x
            if hidden:
                rows = np.maximum(layer(network.hidden, m, rows), 0)
            expected.append(layer(network.head, m, rows))
        with torch.no_grad():
            actual = network(VECTORS, per_member=training)
        assert actual.shape == ((members, P, G) if training else (P, G))
        stacked = np.stack(expected)
        np.testing.assert_allclose(
            actual, stacked if training else stacked.mean(0), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_one_row_in_training(norm: str, members: int) -> None:
    network = make_head(norm=norm, members=members).train()
    logits = network(VECTORS[:1], per_member=True)
    assert logits.shape == (members, 1, G) and logits.isfinite().all()
    if norm == "batch":  # normalised by running statistics
        assert torch.equal(logits.mean(0), network.eval()(VECTORS[:1]))


def test_initial_logits_are_zero_without_a_hidden_layer() -> None:
    network = EmbeddingHead(G, D)
    nn.init.zeros_(network.head.bias)
    assert not network.eval()(VECTORS).any()
    assert EmbeddingHead(G, D, hidden=4).head.weight.any()


def test_members_differ_in_initial_weights_and_dropout() -> None:
    torch.manual_seed(0)
    network = EmbeddingHead(G, D, hidden=8, norm="none", input_dropout=0.5, dropout=0.5, members=2)
    assert network.hidden is not None
    assert not torch.equal(network.hidden.weight[0], network.hidden.weight[1])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.5)
    first, second = network.train()(VECTORS.abs(), per_member=True)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("hidden", [0, 4])
@pytest.mark.parametrize("members", [1, 3])
def test_dropped_inputs_count_as_zeros_and_kept_ones_are_scaled(hidden: int, members: int) -> None:
    """Outputs and gradients equal those of the same layers on zeroed and scaled rows."""
    network = make_head(hidden=hidden, norm="layer", input_dropout=0.5, members=members).train()
    first = network.head if network.hidden is None else network.hidden
    torch.manual_seed(1)
    kept = network.input_drop(members, D, VECTORS.device)
    assert kept is not None
    torch.manual_seed(1)
    actual = network(VECTORS, per_member=True)
    actual.square().sum().backward()
    assert first.weight.grad is not None
    gradient = first.weight.grad.clone()

    network.zero_grad()
    rows = nn.functional.layer_norm(VECTORS, (D,)) * network.scale
    mask = torch.zeros(members, 1, D).scatter(2, kept[:, None], D / kept.shape[1])
    expected = torch.einsum("mpd,mdh->mph", rows * mask, first.weight)
    expected = expected + first.bias.view(members, 1, -1)
    if hidden:
        expected = torch.einsum("mph,mhg->mpg", expected.relu(), network.head.weight)
        expected = expected + network.head.bias.view(members, 1, -1)
    expected.square().sum().backward()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradient, first.weight.grad)


@pytest.mark.parametrize("hidden", [0, 4])
def test_each_row_is_scored_by_the_member_of_its_fold(hidden: int) -> None:
    network = make_head(hidden=hidden, members=3).eval()
    folds = torch.arange(len(VECTORS)) % 5 % 3
    per_member = network(VECTORS, per_member=True)
    expected = torch.stack([per_member[int(member), row] for row, member in enumerate(folds)])
    torch.testing.assert_close(network(VECTORS, folds=folds), expected)


def test_only_biases_have_one_dimension() -> None:
    for name, parameter in make_head(hidden=4, members=3).named_parameters():
        assert (parameter.ndim == 1) == name.endswith("bias"), name


def test_a_few_batches_suffice_to_normalise_vectors_of_any_scale() -> None:
    network = EmbeddingHead(2, 3)
    vectors = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    vectors = vectors * torch.tensor([0.01, 1.0, 100.0]) + torch.tensor([1000.0, 0.0, -5.0])
    for batch in vectors.split(20):
        network(batch)
    network.eval()
    assert network.norm is not None
    normalised = network.norm(vectors)
    # The mean of the batches' variances leaves out how their means differ.
    torch.testing.assert_close(normalised.mean(0), torch.zeros(3), atol=0.02, rtol=0)
    torch.testing.assert_close(normalised.std(0), torch.ones(3), atol=0.15, rtol=0)
