"""Our dropout against PyTorch's own, number for number."""

from __future__ import annotations

import pytest
import torch

from genre_lightning.models.dropout import Dropout


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
