"""Our dropout against PyTorch's own, number for number; and dropout of inputs."""

from __future__ import annotations

import pytest
import torch

from genre_lightning.models.dropout import Dropout, InputDropout


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("shape", [(0, 3), (5,), (3, 40), (2, 300, 70)])
def test_it_draws_what_pytorch_draws_and_leaves_the_generator_where_pytorch_does(
    p: float, shape: tuple[int, ...]
) -> None:
    ours, theirs = torch.randn(shape), torch.empty(shape)
    theirs.copy_(ours)
    found = []
    for values, module in ((ours, Dropout(p)), (theirs, torch.nn.Dropout(p))):
        torch.manual_seed(7)
        values.requires_grad_()
        dropped = module(values)
        dropped.square().sum().backward()
        found.append((dropped.detach(), values.grad, torch.get_rng_state()))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_members_that_share_their_rows_lose_different_ones() -> None:
    torch.manual_seed(0)
    dropped = Dropout(0.5)(torch.ones(1, 200).expand(3, -1))
    assert not torch.equal(dropped[0], dropped[1])
    assert not torch.equal(dropped[1], dropped[2])


def test_nothing_is_drawn_in_evaluation() -> None:
    before = torch.get_rng_state()
    values = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Dropout(0.5).eval()(values), values)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 0.99])
def test_inputs_are_left_out_in_their_share_and_each_as_often(p: float) -> None:
    torch.manual_seed(0)
    dropout = InputDropout(p)
    found = [dropout(3, 50, torch.device("cpu")) for _ in range(400)]
    if p == 0.0:
        assert found == [None] * 400
        return
    counts = torch.zeros(3, 50)
    for kept in found:
        assert kept is not None and kept.shape == (3, max(1, round(50 * (1 - p))))
        for member, row in enumerate(kept.tolist()):
            assert len(set(row)) == len(row)
            counts[member, row] += 1
    expected = 400 * found[0].shape[1] / 50
    assert (counts - expected).abs().max() < 5 * expected**0.5
    assert any(set(kept[0].tolist()) != set(kept[1].tolist()) for kept in found if kept is not None)


def test_all_inputs_are_seen_in_evaluation() -> None:
    before = torch.get_rng_state()
    assert InputDropout(0.5).eval()(2, 8, torch.device("cpu")) is None
    assert torch.equal(torch.get_rng_state(), before)
