"""A linear layer, or two, over vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from genre_lightning.models.embedding_head import NORMS, EmbeddingHead

P, D, G = 6, 5, 3
VECTORS = torch.from_numpy(np.random.default_rng(0).normal(2.0, 3.0, (P, D))).float()


def head(**more: Any) -> EmbeddingHead:
    torch.manual_seed(1)
    made = EmbeddingHead(G, D, **{"input_dropout": 0.0, "dropout": 0.0, **more})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
        if made.norm is not None:
            made.norm.running_mean.copy_(torch.linspace(1, 3, D))  # type: ignore[union-attr]
            made.norm.running_var.copy_(torch.linspace(2, 9, D))  # type: ignore[union-attr]
    return made


def normalised(x: np.ndarray, made: EmbeddingHead, norm: str, training: bool) -> np.ndarray:
    if norm == "none":
        return x
    if norm == "layer":
        return np.asarray((x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5))
    if training:
        mean, variance = x.mean(0), x.var(0)
    else:
        assert made.norm is not None
        mean, variance = made.norm.running_mean.numpy(), made.norm.running_var.numpy()  # type: ignore[union-attr]
    return np.asarray((x - mean) / np.sqrt(variance + 1e-5))


def layer(made: Any, m: int, x: np.ndarray) -> np.ndarray:
    weight = made.weight.detach().double().numpy()[m]
    bias = made.bias.detach().double().numpy().reshape(made.members, -1)[m]
    return np.asarray(x @ weight + bias)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("hidden", [0, 4])
@pytest.mark.parametrize("norm", NORMS)
def test_against_plain_matrices(norm: str, hidden: int, members: int) -> None:
    made = head(norm=norm, hidden=hidden, members=members)
    for training in (False, True):
        made.train(training)
        x = normalised(VECTORS.double().numpy(), made, norm, training)
        if not hidden and norm != "none":
            x = x / np.sqrt(x.shape[1])
        wanted = []
        for m in range(members):
            rows = x
            if hidden:
                rows = np.maximum(layer(made.hidden, m, rows), 0)
            wanted.append(layer(made.head, m, rows))
        with torch.no_grad():
            found = made(VECTORS, per_member=training)
        assert found.shape == ((members, P, G) if training else (P, G))
        stacked = np.stack(wanted)
        np.testing.assert_allclose(
            found, stacked if training else stacked.mean(0), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_one_row_in_training(norm: str, members: int) -> None:
    made = head(norm=norm, members=members).train()
    found = made(VECTORS[:1], per_member=True)
    assert found.shape == (members, 1, G) and found.isfinite().all()
    if norm == "batch":  # by what was seen before
        assert torch.equal(found.mean(0), made.eval()(VECTORS[:1]))


def test_without_hidden_layer_it_starts_from_nothing() -> None:
    made = EmbeddingHead(G, D)
    nn.init.zeros_(made.head.bias)
    assert not made.eval()(VECTORS).any()
    assert EmbeddingHead(G, D, hidden=4).head.weight.any()


def test_members_begin_and_drop_out_apart() -> None:
    torch.manual_seed(0)
    made = EmbeddingHead(G, D, hidden=8, norm="none", input_dropout=0.5, dropout=0.5, members=2)
    assert made.hidden is not None
    assert not torch.equal(made.hidden.weight[0], made.hidden.weight[1])
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(0.5)
    one, other = made.train()(VECTORS.abs(), per_member=True)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("hidden", [0, 4])
@pytest.mark.parametrize("members", [1, 3])
def test_left_out_inputs_count_as_zeros_and_the_rest_for_more(hidden: int, members: int) -> None:
    """Beside the same layers on rows with zeros, in what they give and what they learn."""
    made = head(hidden=hidden, norm="layer", input_dropout=0.5, members=members).train()
    first = made.head if made.hidden is None else made.hidden
    torch.manual_seed(1)
    kept = made.input_drop(members, D, VECTORS.device)
    assert kept is not None
    torch.manual_seed(1)
    found = made(VECTORS, per_member=True)
    found.square().sum().backward()
    assert first.weight.grad is not None
    gradient = first.weight.grad.clone()

    made.zero_grad()
    rows = nn.functional.layer_norm(VECTORS, (D,)) * made.scale
    mask = torch.zeros(members, 1, D).scatter(2, kept[:, None], D / kept.shape[1])
    expected = torch.einsum("mpd,mdh->mph", rows * mask, first.weight)
    expected = expected + first.bias.view(members, 1, -1)
    if hidden:
        expected = torch.einsum("mph,mhg->mpg", expected.relu(), made.head.weight)
        expected = expected + made.head.bias.view(members, 1, -1)
    expected.square().sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, first.weight.grad)


@pytest.mark.parametrize("hidden", [0, 4])
def test_each_row_by_a_member_of_its_own(hidden: int) -> None:
    made = head(hidden=hidden, members=3).eval()
    folds = torch.arange(len(VECTORS)) % 5 % 3
    per_member = made(VECTORS, per_member=True)
    expected = torch.stack([per_member[int(member), row] for row, member in enumerate(folds)])
    torch.testing.assert_close(made(VECTORS, folds=folds), expected)


def test_biases_are_of_one_dimension() -> None:
    for name, parameter in head(hidden=4, members=3).named_parameters():
        assert (parameter.ndim == 1) == name.endswith("bias"), name
