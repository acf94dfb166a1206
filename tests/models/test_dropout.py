"""Our dropout against PyTorch's own, number for number; that of members; and that of inputs."""

from __future__ import annotations

import pytest
import torch

from genre_lightning.models.dropout import Dropout, InputDropout, MemberDropout


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("p", [0.001, 0.3, 0.5, 0.9])
def test_members_lose_the_same_units_in_their_share(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    units = torch.rand(3, 301, 203, dtype=dtype) + 1
    dropped = MemberDropout(p)(units)
    assert dropped.dtype == dtype
    noise = dropped / units
    torch.testing.assert_close(noise[0], noise[2])
    kept = dropped[0] != 0
    torch.testing.assert_close(
        noise[0][kept], torch.full_like(noise[0][kept], 1 / (1 - p)), rtol=1e-3, atol=0
    )
    # Of a row, of a column and of what is drawn together: nothing depends on the number before.
    flat = kept.flatten().double()
    deviation = (p * (1 - p) / len(flat)) ** 0.5
    assert abs(flat.mean() - (1 - p)) < 5 * deviation + 2**-16
    for apart in (1, 2, 3, 4, 203):
        pairs = torch.stack([flat[apart:], flat[:-apart]])
        assert abs(torch.corrcoef(pairs)[0, 1]) < 5 * len(flat) ** -0.5


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_one_member_alone_loses_units_as_pytorchs_would(p: float) -> None:
    torch.manual_seed(0)
    units = torch.ones(400, 50, requires_grad=True)
    dropped = MemberDropout(p)(units)
    dropped.sum().backward()
    assert units.grad is not None and torch.equal(dropped, units.grad)
    assert set(dropped.unique().tolist()) == {0.0: {1.0}, 0.5: {0.0, 2.0}, 1.0: {0.0}}[p]
    # Rows lose different ones.
    assert p != 0.5 or len(dropped.unique(dim=0)) == 400


@pytest.mark.parametrize("kind", [Dropout, MemberDropout])
def test_nothing_is_drawn_in_evaluation(kind: type[torch.nn.Dropout]) -> None:
    before = torch.get_rng_state()
    values = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kind(0.5).eval()(values), values)
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
